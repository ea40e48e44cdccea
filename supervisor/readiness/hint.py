"""The ready line: a log line that makes the next probe happen at once. Its pattern is the user's and may be slow.

A regular expression with repeats or groups may take hours for one line, and a match of Python's `re` can neither be
interrupted nor does it let anything else run beside it. So such patterns are matched by the package `regex`, which
takes the same syntax and a time limit. Patterns without either (`listening on|model loaded`) take `re` and save an
import.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Final

import anyio

_MAX_CHARS: Final = 1024  # of a line; ready lines are short
_LIMIT_S: Final = 0.05  # of one search
_STRIKES: Final = 3  # searches over the limit; one alone may be due to a busy machine
_SLOW: Final = re.compile(r"\\.|([*+?{(])", re.DOTALL)  # repeats, and alternatives in groups; not what is escaped


class Hint:
    """Wakes the poll early: `see(line)` for every log line.

    Args:
        pattern: of the line; None: there is no hint.
        on_give_up: called once, with a sentence, when the pattern is not looked for any more.
    """

    def __init__(self, pattern: str | None, *, on_give_up: Callable[[str], None] = lambda _: None) -> None:
        self._pattern = pattern
        self._search: Callable[[str], object] | None = None
        self._on_give_up = on_give_up
        self._slow = 0
        self._event = anyio.Event()
        if pattern:
            try:
                self._search = _searching(pattern)
            except ValueError as error:
                self._give_up(f"cannot be read by the package regex ({error})")

    def see(self, line: str) -> None:
        """Gives the hint if the beginning of the line, 1024 characters, holds a match."""
        if self._search is None:
            return
        try:
            if self._search(line[:_MAX_CHARS]):
                self._event.set()
        except TimeoutError:
            self._slow += 1
            if self._slow >= _STRIKES:
                self._give_up(f"took more than {_LIMIT_S * 1000:.0f} ms for a log line, {_STRIKES} times")

    def _give_up(self, why: str) -> None:
        self._search = None
        self._on_give_up(f"the ready pattern {self._pattern!r} {why}: it is ignored, and health is polled as before")

    async def sleep(self, delay_s: float) -> bool:
        """Sleeps for the delay or until the hint; returns whether it was the hint, and forgets it."""
        with anyio.move_on_after(delay_s):
            await self._event.wait()
        hinted = self._event.is_set()
        if hinted:
            self._event = anyio.Event()
        return hinted


def _searching(pattern: str) -> Callable[[str], object]:
    """The search for a pattern, which raises TimeoutError when it takes too long; ValueError: it cannot be had."""
    if not any(match[1] for match in _SLOW.finditer(pattern)):
        return re.compile(pattern).search
    import regex

    try:
        return partial(regex.compile(pattern).search, timeout=_LIMIT_S)
    except regex.error as error:  # a spelling that only `re` knows
        raise ValueError(str(error)) from error
