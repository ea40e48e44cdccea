"""How far the load is, from /proc and the size of the weights; and whether it still moves."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import anyio

from supervisor.linux.exhaustion import look
from supervisor.linux.usage import Session, Usage
from supervisor.timing.limits import sleep_running

_SAMPLE_S: Final = 0.25
# Less than this since the last movement is none: an amount, an average rate, or what answering our own probes costs,
# whichever is most (a probe takes a small server 0.3 ms and 400 bytes, and there are up to 20 a second).
_BYTES, _BYTES_PER_S, _BYTES_PER_PROBE = 4096, 4096.0, 512
_CPU_S, _CPU_PER_S, _CPU_S_PER_PROBE = 0.02, 0.01, 0.001

OnProgress = Callable[[int, int | None, float, float | None], None]


def total_bytes(weights: Sequence[Path]) -> int | None:
    """The size of all weight files; None when there are none, or one is missing."""
    try:
        return sum(path.stat().st_size for path in weights) or None
    except OSError:
        return None


class LoadMeter:
    """Samples a loading session four times a second.

    What is read before some process has a file of the weights open or mapped is not counted as weights: a server of
    Python reads hundreds of megabytes of libraries first. It is movement all the same.

    Args:
        session: of the child.
        weights: whose size is the total.
        bytes_logged: how much the child has written so far, a sign of life.
        probes_answered: how many of our own probes the child had to answer so far.
        on_progress: (bytes, total or None, bytes per second, seconds to go or None), when bytes moved.
    """

    def __init__(
        self,
        session: Session,
        weights: Sequence[Path],
        *,
        bytes_logged: Callable[[], int],
        probes_answered: Callable[[], int],
        on_progress: OnProgress,
    ) -> None:
        self._session = session
        self._bytes_logged = bytes_logged
        self._probes_answered = probes_answered
        self._on_progress = on_progress
        self._began = time.monotonic()
        self.total = total_bytes(weights)
        self.bytes_read = 0
        # None: from the beginning on everything counts, because nobody can tell when a folder is read.
        self._awaited = {os.path.realpath(path) for path in weights} if all(map(Path.is_file, weights)) else None
        self._earlier = 0  # read before the weights were opened
        self._last = 0  # read by the members at the last sample

    async def until_stalled(self, stall_s: float) -> None:
        """Reports progress; returns once nothing has moved for `stall_s`. Never returns where /proc does not tell.

        Cancellation is safe at any time.
        """
        last = await self._usage()
        if last is None:
            await anyio.sleep_forever()
            return
        quiet_s = 0.0  # by this process's own time: while it is suspended, it sees nothing move
        reported, logged, probes = self._read(last), self._bytes_logged(), self._probes_answered()
        while quiet_s < stall_s:
            quiet_s += await sleep_running(min(_SAMPLE_S, stall_s))
            usage = await self._usage() or last
            # Compared with the last movement, not with the last sample: slow and steady is movement too.
            moved = _moved(last, usage, quiet_s, self._probes_answered() - probes)
            if moved or self._bytes_logged() != logged:
                quiet_s, last = 0.0, usage
                logged, probes = self._bytes_logged(), self._probes_answered()
            if self._read(usage) - reported >= _BYTES and self.total:
                reported = self._read(usage)
                self._report(reported, time.monotonic() - self._began)

    async def finish(self) -> None:
        """Reports once more, at the end of the load: else what was read since the last sample would be missing."""
        usage = await self._usage() if self.total else None
        if usage is None:
            return
        # Weights that nobody was seen to open were read between two samples.
        read = usage.bytes_read if self._awaited else self._read(usage)
        if min(read, self.total or 0) > self.bytes_read:
            self._report(read, time.monotonic() - self._began)

    async def _usage(self) -> Usage | None:
        usage = await look(self._sample)
        if usage is None:
            return None
        if self._awaited:
            self._earlier, self._began = usage.bytes_read, usage.at
        else:  # a member that has ended takes with it what it read
            self._earlier = max(0, self._earlier - max(0, self._last - usage.bytes_read))
        self._last = usage.bytes_read
        return usage

    def _sample(self) -> Usage | None:
        usage = self._session.usage()
        if self._awaited and usage is not None and self._session.holds_any(self._awaited):
            self._awaited = None
        return usage

    def _read(self, usage: Usage) -> int:
        return usage.bytes_read - self._earlier

    def _report(self, seen: int, took_s: float) -> None:
        assert self.total
        # Libraries and templates are read too; what is over the total is not weights.
        self.bytes_read = min(seen, self.total)
        rate = self.bytes_read / took_s
        self._on_progress(self.bytes_read, self.total, rate, (self.total - self.bytes_read) / rate)


def _moved(last: Usage, usage: Usage, took_s: float, probes: int) -> bool:
    moved, works = usage.bytes_moved - last.bytes_moved, usage.cpu_s - last.cpu_s
    if moved < 0 or works < 0:  # a member has ended
        return True
    return moved >= max(_BYTES, _BYTES_PER_S * took_s, _BYTES_PER_PROBE * probes) or works >= max(
        _CPU_S, _CPU_PER_S * took_s, _CPU_S_PER_PROBE * probes
    )
