"""Engines: each turns its settings into a `Profile`, and says in a `Dialect` how its server speaks.

May import the core (profile, dialect, child, errors, redact); the core imports no engine, and neither do hooks: they
ask `child.profile.dialect`. A room an engine: `llama_cpp`, `embedded`; `base` holds what every engine is.
"""

from __future__ import annotations

import importlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from supervisor.engines.base import Engine, PlainServer

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["NAMED", "Engine", "PlainServer", "named"]

NAMED: Final[Mapping[str, str]] = MappingProxyType({"local": "supervisor.engines.embedded:Embedded"})
"""Engines that need no settings, by the name that a command line uses: `module:class`, imported when it is asked for.
All of them serve a model."""


def named(name: str) -> Engine | None:
    """The engine that a name stands for, as it comes without settings; None: no engine has that name."""
    if name not in NAMED:
        return None
    module, _, attribute = NAMED[name].partition(":")
    engine: Engine = getattr(importlib.import_module(module), attribute)()
    return engine
