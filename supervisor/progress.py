"""How far the load is, from /proc and the size of the weights; and whether it still moves."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import anyio

from supervisor import procfs

_SAMPLE_S: Final = 0.25
# Probing keeps a loading server a little busy: less than this is not progress.
_MOVING_BYTES: Final = 4096
_MOVING_CPU_S: Final = 0.02

OnProgress = Callable[[int, int | None, float, float | None], None]


def total_bytes(weights: Sequence[Path]) -> int | None:
    """The size of all weight files; None when there are none, or one is missing."""
    try:
        return sum(path.stat().st_size for path in weights) or None
    except OSError:
        return None


class LoadMeter:
    """Samples a loading session four times a second.

    Args:
        session: of the child (its pid).
        weights: whose size is the total.
        bytes_logged: how much the child has written so far, a sign of life.
        on_progress: (bytes, total or None, bytes per second, seconds to go or None), when bytes moved.
    """

    def __init__(
        self, session: int, weights: Sequence[Path], *, bytes_logged: Callable[[], int], on_progress: OnProgress
    ) -> None:
        self._session = session
        self._bytes_logged = bytes_logged
        self._on_progress = on_progress
        self.total = total_bytes(weights)
        self.bytes_read = 0

    async def until_stalled(self, stall_s: float) -> None:
        """Reports progress; returns once nothing has moved for `stall_s`. Never returns where /proc does not tell.

        Cancellation is safe at any time.
        """
        last = procfs.usage(self._session)
        if last is None:
            await anyio.sleep_forever()
            return
        began = moved_at = time.monotonic()
        logged = self._bytes_logged()
        while time.monotonic() - moved_at < stall_s:
            await anyio.sleep(min(_SAMPLE_S, stall_s))
            usage = procfs.usage(self._session) or last
            reads, works = usage.bytes_read - last.bytes_read, usage.cpu_s - last.cpu_s
            if reads < 0 or reads >= _MOVING_BYTES or works >= _MOVING_CPU_S or self._bytes_logged() != logged:
                moved_at = time.monotonic()
            if reads >= _MOVING_BYTES and self.total:
                self._report(usage.bytes_read, moved_at - began)
            last, logged = usage, self._bytes_logged()

    def _report(self, seen: int, took_s: float) -> None:
        assert self.total
        # Libraries and templates are read too; what is over the total is not weights.
        self.bytes_read = min(seen, self.total)
        rate = self.bytes_read / took_s
        self._on_progress(self.bytes_read, self.total, rate, (self.total - self.bytes_read) / rate)
