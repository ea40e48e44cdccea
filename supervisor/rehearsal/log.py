"""The log of the program in the sandbox: events as JSON objects, a line each, among other lines of text."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Self

from supervisor.logs.render import console_renderer

__all__ = ["LoggedEvent", "for_people"]

_FRAME: Final = ("event", "level", "timestamp", "elapsed_s")  # what every event has in JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedEvent:
    """An event of the supervision in the sandbox: its name, and the fields of its own."""

    name: str
    fields: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, line: str) -> Self | None:
        """The event that a line of the log is; None for any other line."""
        if (entry := _entry(line)) is None:
            return None
        return cls(name=entry["event"], fields={name: entry[name] for name in entry if name not in _FRAME})


def for_people() -> Callable[[str], str]:
    """Makes a function that turns an event's line into one for a person, and leaves other lines as they are."""
    render = console_renderer(colors=False)

    def show(line: str) -> str:
        return line if (entry := _entry(line)) is None else render(entry)

    return show


def _entry(line: str) -> dict[str, Any] | None:
    if not line.startswith("{"):
        return None
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) and all(name in entry for name in _FRAME) else None
