"""llama.cpp's `llama-server`: `server` holds its settings, `flags` its command line, `dialect` how it speaks.

May import the core and `help_flags`.
"""

from supervisor.engines.llama_cpp.dialect import LLAMA_CPP, accept, parse_line
from supervisor.engines.llama_cpp.flags import capabilities
from supervisor.engines.llama_cpp.server import LlamaServer

__all__ = ["LLAMA_CPP", "LlamaServer", "accept", "capabilities", "parse_line"]
