"""vLLM's API server: `server` holds its settings, `flags` its command line, `config` its YAML file, `dialect` how it
speaks, `sleep` the Steps that put it to sleep and wake it, `guard` and `event_loop` each a file
that vLLM itself runs for us.

May import the core and the engines' shared modules.
"""

from supervisor.engines.vllm.dialect import VLLM, parse_line
from supervisor.engines.vllm.server import Vllm

__all__ = ["VLLM", "Vllm", "parse_line"]
