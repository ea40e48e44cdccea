"""The profile `local`: the embedded engine with its model, warmed up and watched by a small request."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from supervisor.profile import Profile
    from supervisor.steps import Hooks

__all__ = ["local"]


def local() -> tuple[Profile, Hooks]:
    """Gemma 3 270M on llama.cpp; registered under its name in pyproject.toml, so that loading knows no engine."""
    from hooks.warmup import Ping, Text
    from supervisor.engines.embedded import Embedded

    engine = Embedded()
    return engine.profile(), replace(engine.hooks(), warmup=(Text(),), liveness=(Ping(),))
