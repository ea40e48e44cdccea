"""The end of a child: TERM and CONT to its group, a grace period, KILL, and a bounded drain of its pipes."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from typing import Final

import anyio

from supervisor.linux import processes
from supervisor.logs.pump import LogPump
from supervisor.process.process import Process
from supervisor.profile import Stop
from supervisor.timing.limits import running_limit

# KILL cannot be refused, but a task in uninterruptible sleep (a GPU driver, a dead network file system) does not obey.
_KILL_WAIT_S: Final = 5.0
_LOOK_S: Final = 0.01  # only while a server outlives its wrapper
_KILLED_DRAIN_S: Final = 0.25  # killed processes close their pipes at once; only one that left the session does not


@dataclass(frozen=True, slots=True, kw_only=True)
class Teardown:
    """What the end took. `escalated`: KILL ended the child; `drained`: both pipes reached their end in time."""

    took_s: float
    escalated: bool
    drained: bool


async def teardown(process: Process, pump: LogPump, stop: Stop, *, port: int) -> Teardown:
    """Ends the child and everything that descends from it; the pump and `process.watch` must still be running.

    Shielded from cancellation and bounded by `grace_s` + 5 s + `drain_s` and a little. A child that has already ended
    gets no TERM, and what it left behind is killed at once. Otherwise TERM goes to all, and the grace period is for the
    child and for whoever listens on `port` (the server behind a wrapper); others may take until `drain_s` to close the
    pipes. Whatever is alive then is killed, also what left the group or the session.
    """
    began = time.monotonic()
    escalated = False
    with anyio.CancelScope(shield=True):
        asked = not process.note_exit()
        if asked:
            servers = [owner for owner in process.listeners(port) if owner != process.pid]
            process.signal_all(stop.signal)
            # A stopped process takes no signal but KILL and CONT: it would sleep its grace period away. After TERM,
            # which is pending then, so that it does nothing else first; who is not stopped takes no notice.
            process.signal_all(signal.SIGCONT)
            async with running_limit(stop.grace_s):
                await process.exited.wait()
                while any(map(processes.alive, servers)):  # noqa: ASYNC110  they are not our children: there is nothing to await
                    await anyio.sleep(_LOOK_S)
            if not process.note_exit() or any(map(processes.alive, servers)):
                escalated = True
                process.signal_all(signal.SIGKILL)
                await _within(_KILL_WAIT_S, process.exited)
            await _within(stop.drain_s, pump.drained)
        process.signal_all(signal.SIGKILL)
        drained = await _within(_KILLED_DRAIN_S if asked else stop.drain_s, pump.drained)
    return Teardown(took_s=time.monotonic() - began, escalated=escalated, drained=drained)


async def _within(seconds: float, event: anyio.Event) -> bool:
    with anyio.move_on_after(seconds):
        await event.wait()
    return event.is_set()
