"""Reap orphaned descendants that were re-parented to this process, as PID 1 of a container or as a subreaper.

Without it zombies pile up. It ends nothing (`teardown` does), and it must not take the exit status of a child that
somebody in this process waits for.
"""

from __future__ import annotations

import gc
import os
import time
from typing import Final, NoReturn

import anyio
import anyio.to_thread

from supervisor.linux import processes
from supervisor.linux.exhaustion import look
from supervisor.linux.subreaper import adopt_orphans
from supervisor.process.process import reap

_PERIOD_S: Final = 1.0
_UNCLAIMED_S: Final = 5.0  # whoever waits for a child of his takes its status sooner, or holds a Popen of it


class Orphans:
    """Adopts orphans from now on, and looks after them while `tend` runs. For a program of our own, not for hosts."""

    def __init__(self) -> None:
        adopt_orphans()
        # Children of the program that became us by exec(2), as the shell of a container's entrypoint does.
        self._inherited = {(child.pid, child.began) for child in processes.own_children()}
        self._unclaimed_since: dict[tuple[int, int], float] = {}
        self._helpers: set[int] = set()  # children of a Step, in sessions of their own
        self._adopted: set[tuple[int, int]] = set()

    async def tend(self) -> NoReturn:
        """Looks every second, until cancelled."""
        while True:
            await look(self.look)
            await anyio.sleep(_PERIOD_S)

    def look(self) -> None:
        """Reaps adopted zombies, and has living orphans of the child remembered, so that nothing of it is lost."""
        lives = processes.lives()
        others = processes.helpers - self._helpers
        leaders = {leader for leader, _ in lives}
        children = {
            (child.pid, child.began): child
            for child in processes.own_children()
            if child.pid not in leaders and child.pid not in others
        }
        self._unclaimed_since = {who: at for who, at in self._unclaimed_since.items() if who in children}
        self._adopted &= children.keys()
        for who, child in children.items():
            if child.zombie and self._is_unclaimed(who):
                reap(child.pid)
        strangers = [
            child
            for who, child in children.items()
            if not child.zombie and child.session != os.getsid(0) and who not in self._adopted
        ]
        waited_for = _waited_for() if strangers else set()
        processes.helpers.difference_update(self._helpers)
        self._helpers = (self._helpers | waited_for) & {pid for pid, _ in children}
        processes.helpers.update(self._helpers)
        new = {(child.pid, child.began) for child in strangers if child.pid not in waited_for}
        if new:
            self._adopted |= new
            for leader, cookie in lives:
                processes.living(leader, cookie)  # they are remembered, and the guardian is told

    def _is_unclaimed(self, who: tuple[int, int]) -> bool:
        if who in self._inherited or who in self._adopted:
            return True
        since = self._unclaimed_since.setdefault(who, time.monotonic())
        return time.monotonic() - since >= _UNCLAIMED_S and who[0] not in _waited_for()


def _waited_for() -> set[int]:
    """Children that code in this process started itself, a Step for example: there is a `Popen` of each somewhere."""
    return {thing.pid for thing in gc.get_objects() if type(thing).__name__ == "Popen" and hasattr(thing, "pid")}
