"""llama.cpp's `llama-server`: `server` holds its settings, `flags` its command line, `dialect` how it speaks.

`router` holds the settings of the same server with several models: `preset` writes and reads its INI, `router_dialect`
is how it speaks.

May import the core and `help_flags`.
"""

from supervisor.engines.llama_cpp.dialect import LLAMA_CPP, accept, parse_line
from supervisor.engines.llama_cpp.flags import capabilities
from supervisor.engines.llama_cpp.preset import RouterModel
from supervisor.engines.llama_cpp.router import LlamaRouter
from supervisor.engines.llama_cpp.server import LlamaServer

__all__ = ["LLAMA_CPP", "LlamaRouter", "LlamaServer", "RouterModel", "accept", "capabilities", "parse_line"]
