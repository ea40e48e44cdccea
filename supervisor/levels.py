"""Levels of log lines: names that servers give them, and how a line is read whose engine has no format of its own.

Imports only the events.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from supervisor.events import Level

__all__ = ["LEVELS", "ParseLine", "plain_line"]

ParseLine = Callable[[str], tuple[Level, str]]
"""Reads an engine's log line: text -> (level, text to show)."""

LEVELS: Mapping[str, Level] = {
    "trace": "debug",
    "debug": "debug",
    "warn": "warning",
    "warning": "warning",
    "err": "error",
    "error": "error",
    "fatal": "error",
    "critical": "error",
    "panic": "error",
}
"""Names of levels as engines write them; a name that is not here means info."""


def plain_line(line: str) -> tuple[Level, str]:
    """The default reading of a log line: JSON objects give their own level and message, the rest is `info`."""
    if line.startswith("{"):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            return "info", line
        said = str(entry.get("level") or entry.get("severity") or entry.get("lvl") or "info").lower()
        text = entry.get("msg") or entry.get("message") or entry.get("event")
        return LEVELS.get(said, "info"), line if text is None else str(text)
    return "info", line
