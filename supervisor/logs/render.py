"""How an event looks: a line for a person, or a JSON object."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from supervisor.events import LoadProgress
from supervisor.logs.clean import clean


def progress_line(event: LoadProgress) -> str:
    """How far the load is, as a bar."""
    total = event.total_bytes or event.bytes or 1
    part = event.bytes / total
    bar = ("█" * round(part * 30)).ljust(30, "░")
    left = "" if event.eta_s is None else f", {event.eta_s:.0f} s left"
    return f"loading {bar} {part:4.0%} of {total / 1e6:,.0f} MB at {event.bytes_per_s / 1e6:,.0f} MB/s{left}"


def json_renderer() -> Callable[[dict[str, Any]], str]:
    """An entry as one JSON object."""
    import structlog

    renderer = structlog.processors.JSONRenderer(default=str)

    def render(entry: dict[str, Any]) -> str:
        return str(renderer(None, "", entry))

    return render


def console_renderer(*, colors: bool) -> Callable[[dict[str, Any]], str]:
    """An entry as a line for a person; fields with nothing in them are left out."""
    import structlog

    renderer = structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=20, sort_keys=False)

    def render(entry: Mapping[str, Any]) -> str:
        stamp = f"{entry['elapsed_s']:7.2f}"
        shown = {name: _for_eyes(value) for name, value in entry.items() if value != "" and name != "elapsed_s"}
        if entry["event"] == "child.log":  # the child's own words, without the frame around them
            return f"{'':8}{'│'} {shown.get('line', '')}"
        return str(renderer(None, "", {**shown, "timestamp": stamp}))

    return render


def _for_eyes(value: Any) -> Any:
    """A field's value for a person: no control characters, four digits that count; whole digits are all kept."""
    if isinstance(value, float) and math.isfinite(value):
        places = 3 - math.floor(math.log10(abs(value))) if value else 0
        return round(value, places) if places > 0 else round(value)
    return clean(value) if isinstance(value, str) else value
