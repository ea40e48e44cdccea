"""Readiness is a race between health, a stall and the deadline; the lifecycle adds the child's exit to it."""

from __future__ import annotations

import time
from functools import partial

from supervisor import events
from supervisor.child import Child
from supervisor.emitter import Emitter
from supervisor.errors import LoadStalled, NotReady, ReadinessTimeout
from supervisor.linux import processes
from supervisor.logs.pump import LogPump
from supervisor.process.process import Process
from supervisor.readiness.probe import Hint, Polling, wait_up
from supervisor.readiness.progress import LoadMeter
from supervisor.timing.limits import running_limit
from supervisor.timing.racing import race


async def until_up(child: Child, process: Process, pump: LogPump, hint: Hint, emit: Emitter) -> Polling:
    """Waits until the server is up; reports progress and every so many failed probes on the way.

    Raises:
        ReadinessTimeout: `start_s` has passed since the spawn.
        LoadStalled: nothing has moved for `stall_s`.
        PortTaken: somebody else answers.
        WrongModel: the child is up without the model.
    """
    limits = child.profile.timeouts
    polling = Polling()

    def report(done: int, total: int | None, rate: float, eta_s: float | None) -> None:
        emit(events.LoadProgress, bytes=done, total_bytes=total, bytes_per_s=rate, eta_s=eta_s)

    meter = LoadMeter(
        processes.Session(process.pid, child.cookie),
        child.profile.weights,
        bytes_logged=lambda: pump.bytes_seen,
        probes_answered=lambda: polling.answered,
        on_progress=report,
    )

    async def up() -> None:
        async with running_limit(limits.start_s):
            await wait_up(child, polling, hint, on_waiting=partial(report_waiting, emit))
            return
        raise ReadinessTimeout(waited_s=0.0, probes=polling.probes, detail=polling.detail)

    async def stalled() -> None:
        await meter.until_stalled(limits.stall_s)
        raise LoadStalled(
            waited_s=0.0,
            stall_s=limits.stall_s,
            bytes_read=meter.bytes_read,
            total_bytes=meter.total,
            detail=polling.detail,
        )

    try:
        await race(up, stalled)
    except NotReady as error:
        error.waited_s = time.monotonic() - process.spawned_at
        raise
    await meter.finish()
    return polling


def report_waiting(emit: Emitter, failures: int, detail: str) -> None:
    """Reports failed probes as an event."""
    emit(events.HealthWaiting, failures=failures, detail=detail)
