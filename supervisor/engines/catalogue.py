"""Which engines there are: each package of this room whose module `kind` offers `KIND`. Nothing lists them."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from supervisor import engines
from supervisor.dialect import Dialect
from supervisor.engines.base import EngineKind
from supervisor.errors import require

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["PLAIN", "dialects", "guess", "kinds", "named"]

PLAIN: Final = EngineKind(dialect=Dialect(), runs=lambda _: False)
"""Any HTTP server."""


def kinds() -> tuple[EngineKind, ...]:
    """Return every engine's kind, by name, and `PLAIN` last. Imports them: call it where one is asked for."""
    found: list[EngineKind] = []
    for package in pkgutil.iter_modules(engines.__path__, f"{engines.__name__}."):
        module = f"{package.name}.kind"
        if package.ispkg and find_spec(module):
            found.append(import_module(module).KIND)
    return (*sorted(found, key=lambda kind: kind.name), PLAIN)


def dialects() -> tuple[Dialect, ...]:
    """Return the dialects that a list of models can tell apart."""
    return tuple(kind.dialect for kind in kinds() if kind.dialect.owned_by)


def named(name: str) -> EngineKind:
    """Return the kind of that name; `llama-cpp` stands for llama.cpp.

    Raises:
        ProfileError: there is no such engine; the message lists those that there are.
    """
    known = {kind.name.replace(".", "-"): kind for kind in kinds()}
    require(name.replace(".", "-") in known, "--engine", name, f"one of {', '.join(known)}")
    return known[name.replace(".", "-")]


def guess(argv: Sequence[str]) -> EngineKind:
    """Return the kind of the server that a command starts; `PLAIN` when no engine knows the command."""
    return next((kind for kind in kinds() if kind.runs(argv)), PLAIN)
