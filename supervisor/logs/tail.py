"""The tail of a log, for errors: its last lines, and before them the last errors of those that came earlier."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from supervisor.events import Level


class Tail:
    """Keeps the end of a log in bounded memory.

    Args:
        lines: kept of the end.
        errors: lines of level error that are kept of what came before it.
    """

    def __init__(self, lines: int, errors: int) -> None:
        self._lines = lines
        self._last: deque[tuple[Level, str]] = deque()
        self._errors: deque[str] = deque(maxlen=errors)
        self._before = 0  # lines that came before the last ones

    def add(self, level: Level, text: str) -> None:
        """Takes the next line."""
        self._last.append((level, text))
        if len(self._last) > self._lines:
            level, text = self._last.popleft()
            self._before += 1
            if level == "error":
                self._errors.append(text)

    def show(self, unfinished: Iterable[str] = ()) -> tuple[str, ...]:
        """The last lines, with those that are still being written at their end; the errors before them, if any.

        A line in brackets between the two says how many lines are left out.
        """
        last = [*self._last, *(("info", text) for text in unfinished)]
        cut = len(last) - self._lines
        pushed = [text for level, text in last[: max(0, cut)] if level == "error"]
        errors = deque([*self._errors, *pushed], maxlen=self._errors.maxlen)
        left_out = self._before + max(0, cut) - len(errors)
        gap = [f"(... {left_out} other lines ...)"] if errors and left_out else []
        return (*errors, *gap, *(text for _, text in last[-self._lines :]))
