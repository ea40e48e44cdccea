"""The end of a child: TERM to its group or to it alone, CONT to all, a grace period, KILL, and a bounded drain."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import anyio

from supervisor.linux import processes
from supervisor.linux.exhaustion import look
from supervisor.linux.files import argv
from supervisor.linux.processes import command_line
from supervisor.logs.pump import LogPump
from supervisor.process.process import Process
from supervisor.profile import Stop
from supervisor.redact import Redactor
from supervisor.timing.limits import running_limit

T = TypeVar("T")

# KILL cannot be refused, but a task in uninterruptible sleep (a GPU driver, a dead network file system) does not obey.
_KILL_WAIT_S: Final = 5.0
_PAUSE_S: Final = 0.01  # between two checks whether processes that are not our children live on
_KILLED_DRAIN_S: Final = 0.25  # killed processes close their pipes at once
# A look at /proc takes milliseconds, but reading an environment waits for a process that is stuck in the kernel.
_LOOK_S: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Survivor:
    """A process of the child's that could not be ended: stuck in the kernel, or of another user."""

    pid: int
    argv: tuple[str, ...]

    def describe(self, redact: Redactor) -> str:
        """Its number and command line, masked."""
        return f"pid {self.pid} ({command_line(self.argv, redact)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Teardown:
    """What the end took. `escalated`: KILL ended the child; `drained`: both pipes reached their end in time."""

    took_s: float
    escalated: bool
    drained: bool
    survivors: tuple[Survivor, ...] = ()


async def teardown(process: Process, pump: LogPump, stop: Stop, *, port: int) -> Teardown:
    """Ends the child and everything that descends from it; the pump and `process.watch` must still be running.

    Shielded from cancellation and bounded by `grace_s` + `drain_s`, twice 5 s, and a little. A child that has already
    ended gets no TERM, and what it left behind is killed at once. Otherwise TERM goes to whom `stop.to` says, and the
    grace period is for the child and for whoever listens on `port` (the server behind a wrapper); others may take until
    `drain_s` to close the pipes. Whatever is alive then is killed, also what left the group or the session, and so is
    whoever still holds a pipe of the child's after that.
    """
    began = time.monotonic()
    escalated = False
    with anyio.CancelScope(shield=True):
        asked = not process.note_exit()
        if asked:
            members = await _look(process.members) or {}
            listening = await _look(partial(process.listeners, port)) if members.keys() - {process.pid} else None
            servers = [pid for pid in listening or () if pid != process.pid]
            if stop.to == "leader":
                process.signal_leader(stop.signal)
            else:
                process.signal_all(stop.signal, members)
            # A stopped process takes no signal but KILL and CONT: it would sleep its grace period away. After TERM,
            # which is pending then, so that it does nothing else first; who is not stopped takes no notice.
            process.signal_all(signal.SIGCONT, members)
            async with running_limit(stop.grace_s):
                await process.exited.wait()
                await _until_dead(servers)
            if not process.note_exit() or any(map(processes.alive, servers)):
                escalated = True
                process.signal_all(signal.SIGKILL, await _look(process.members) or members)
                await _within(_KILL_WAIT_S, process.exited)
            await _within(stop.drain_s, pump.drained)
        left = await _kill_all(process, process.members)
        drained = await _within(_KILLED_DRAIN_S if asked else stop.drain_s, pump.drained)
        if not drained:  # a daemon without parent, session and environment in common with the child
            left |= await _kill_all(process, process.pipe_holders)
            drained = await _within(_KILLED_DRAIN_S, pump.drained)
        survivors = tuple(Survivor(pid=pid, argv=argv(pid)) for pid in sorted(left))
    return Teardown(took_s=time.monotonic() - began, escalated=escalated, drained=drained, survivors=survivors)


async def _kill_all(process: Process, find: Callable[[], dict[int, int]]) -> set[int]:
    """Kills the group and whoever is found, until nobody is found, for 5 s at most; returns who is left."""
    killed: dict[int, int] = {}
    with anyio.move_on_after(_KILL_WAIT_S):
        while True:
            found = await _look(find) or {}
            process.signal_all(signal.SIGKILL, found)
            if not found:
                break
            killed |= found
            await _until_dead(found)
    return set(filter(processes.alive, killed))


async def _until_dead(pids: Collection[int]) -> None:
    while any(map(processes.alive, pids)):  # noqa: ASYNC110  they are not our children: there is nothing to await
        await anyio.sleep(_PAUSE_S)


async def _look(find: Callable[[], T]) -> T | None:
    """Looks at /proc in a thread, for a limited time; None: we have no means to look, or it took too long."""
    with anyio.move_on_after(_LOOK_S):
        return await look(find)
    return None


async def _within(seconds: float, event: anyio.Event) -> bool:
    with anyio.move_on_after(seconds):
        await event.wait()
    return event.is_set()
