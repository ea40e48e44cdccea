"""Timeouts that do not count the time during which this process was suspended.

A supervisor may be suspended: SIGSTOP, a frozen machine, a snapshot that nobody announced. The clock goes on meanwhile,
or jumps at the end, and a plain deadline would be over at once, though nobody could have met it. So a limit is slept in
slices, and each counts for a little more than its own length at most.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import anyio

from supervisor.timing.racing import alongside

_PARTS: Final = 4  # a suspension in a slice costs the rest of the slice at most
_SHORTEST_S, _LONGEST_S = 0.05, 1.0  # slices: rare enough for a hundred limits at once
_LATE: Final = 1.25  # of a slice: a busy loop wakes late, and that time counts


class Limit:
    """A cancel scope that ends by itself; `running_limit` makes it.

    Attributes:
        scope: cancelled once the limit has passed; it may be cancelled by others too.
    """

    def __init__(self, limit_s: float) -> None:
        self.scope = anyio.CancelScope()
        self._limit_s = self._left_s = limit_s
        self._slice_s = min(max(limit_s / _PARTS, _SHORTEST_S), _LONGEST_S)

    @property
    def cancelled_caught(self) -> bool:
        """Whether the limit ended the work."""
        return self.scope.cancelled_caught

    def restart(self) -> None:
        """Lets the limit begin anew; it may then pass late by a slice."""
        self._left_s = self._limit_s + self._slice_s

    async def count(self) -> None:
        """Sleeps until the limit has passed, then cancels the scope."""
        while self._left_s > 0:
            slept_s = await sleep_running(min(self._slice_s, self._left_s))
            self._left_s -= slept_s  # read only now: it may have been restarted meanwhile
        self.scope.cancel()


@asynccontextmanager
async def running_limit(limit_s: float) -> AsyncIterator[Limit]:
    """`anyio.move_on_after` by the time in which this process ran: `async with running_limit(5) as limit:`.

    The body runs in the caller's task and raises what it raises, unwrapped. `limit.cancelled_caught` tells whether the
    limit ended it. A cancellation from outside goes through, but does not replace an error that the body has raised.
    """
    limit = Limit(limit_s)
    async with alongside(limit.count):
        with limit.scope:
            yield limit


async def sleep_running(seconds: float) -> float:
    """Sleeps; returns for how long this process ran meanwhile: at most a quarter more than was asked for."""
    began = time.monotonic()
    await anyio.sleep(seconds)
    return min(time.monotonic() - began, seconds * _LATE)
