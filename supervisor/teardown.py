"""The end of a child: TERM to its group, a grace period, KILL, and a bounded drain of its pipes."""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from typing import Final

import anyio

from supervisor.logs import LogPump
from supervisor.process import Process
from supervisor.profile import Stop

# KILL cannot be refused, but a task in uninterruptible sleep (a GPU driver, a dead network file system) does not obey.
_KILL_WAIT_S: Final = 5.0
_KILLED_DRAIN_S: Final = 0.25  # killed processes close their pipes at once; only one that left the session does not


@dataclass(frozen=True, slots=True, kw_only=True)
class Teardown:
    """What the end took. `escalated`: KILL ended the child; `drained`: both pipes reached their end in time."""

    took_s: float
    escalated: bool
    drained: bool


async def teardown(process: Process, pump: LogPump, stop: Stop) -> Teardown:
    """Ends the child and everything in its group; the pump must still be running, and so must `process.watch`.

    Shielded from cancellation and bounded by `grace_s` + 5 s + `drain_s` and a little. A child that has already ended
    gets no TERM, and what it left in its group is killed at once. After a child that obeyed TERM the rest of its group
    (the server behind a wrapper) may take until `drain_s` to close the pipes; then it is killed too.
    """
    began = time.monotonic()
    escalated = False
    with anyio.CancelScope(shield=True):
        asked = not process.note_exit()
        if asked:
            process.signal_group(stop.signal)
            if not await _within(stop.grace_s, process.exited):
                escalated = True
                process.signal_group(signal.SIGKILL)
                await _within(_KILL_WAIT_S, process.exited)
            await _within(stop.drain_s, pump.drained)
        process.signal_group(signal.SIGKILL)
        drained = await _within(_KILLED_DRAIN_S if asked else stop.drain_s, pump.drained)
    return Teardown(took_s=time.monotonic() - began, escalated=escalated, drained=drained)


async def _within(seconds: float, event: anyio.Event) -> bool:
    with anyio.move_on_after(seconds):
        await event.wait()
    return event.is_set()
