"""SGLang: `server` holds its settings, `flags` its command line, `dialect` how it speaks.

`private` is the file with its keys, `sleep` releases and resumes the GPU's memory. `event_loop` is a file
that SGLang itself runs for us. May import the core, `help_flags` and `yaml_keys`.
"""

from supervisor.engines.sglang.dialect import SGLANG
from supervisor.engines.sglang.server import Sglang
from supervisor.engines.sglang.sleep import EngineRefused, MemorySaver

__all__ = ["SGLANG", "EngineRefused", "MemorySaver", "Sglang"]
