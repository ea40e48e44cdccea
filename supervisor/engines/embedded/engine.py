"""The embedded engine's settings: those of `LlamaServer`, with defaults for its own program and model."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from supervisor.dialect import Request
from supervisor.engines.embedded.model import MODEL_ID, AssembleModel, model_path
from supervisor.engines.embedded.program import help_text
from supervisor.engines.help_flags import listed
from supervisor.engines.llama_cpp.dialect import LLAMA_CPP
from supervisor.engines.llama_cpp.server import LlamaServer
from supervisor.steps import Hooks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from supervisor.dialect import Dialect
    from supervisor.profile import Profile

__all__ = ["EMBEDDED", "PROGRAM", "Embedded", "profile"]

PROGRAM: Final = (sys.executable, "-m", "supervisor.engines.embedded")

EMBEDDED: Final = replace(
    LLAMA_CPP,
    engine="embedded",
    # The embedded model was never taught to chat: it continues a text sensibly, and answers a chat with `<|im_end|>`.
    example=Request(path="/v1/completions", body={"prompt": "The sea is", "max_tokens": 48}),
)
"""llama.cpp's dialect, with an example that suits the embedded model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """Gemma 3 270M on the CPU, two slots of 2048 tokens. Implements `Engine`.

    Attributes:
        settings: of `LlamaServer`, in place of the defaults.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def dialect(self) -> Dialect:
        """How the server speaks."""
        return EMBEDDED

    def profile(self) -> Profile:
        """Build the profile; the model need not be there yet.

        Raises:
            UnsupportedFlag: the engine lacks a flag that a setting or an extra argument needs.
            ProfileError: a setting is wrong.
        """
        defaults: dict[str, Any] = {
            "binary": PROGRAM,
            "model": model_path(),
            "alias": MODEL_ID,
            "ctx_size": 4096,
            "slots": 2,
            "threads": min(os.cpu_count() or 1, 8),
        }
        own = "binary" not in self.settings  # running our own --help would take as long as an interpreter's start
        server = LlamaServer(**(defaults | dict(self.settings)))
        return replace(server.profile(listed(help_text()) if own else None), dialect=self.dialect)

    def hooks(self) -> Hooks:
        """Return the Step that writes the model before the first start."""
        return Hooks(before_start=(AssembleModel(),))


def profile(**settings: Any) -> Profile:
    """The embedded engine's profile. Put `AssembleModel()` before its start.

    Args:
        settings: of `LlamaServer`, in place of the defaults.
    """
    return Embedded(settings=settings).profile()
