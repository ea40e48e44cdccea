"""Waiting until the server is up: the poll of its health, and the race against a stall and the deadline.

Polling is tenacity's, sleeping is ours: the sleep ends with the delay *or* with a hint (a log line that matches the
engine's ready pattern), whichever is first, so that the poll can be slow and the detection fast.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from tenacity import AsyncRetrying, RetryCallState, retry_if_result

from supervisor import events
from supervisor.child import Child
from supervisor.emitter import Emitter
from supervisor.errors import LoadStalled, NotReady, ReadinessTimeout
from supervisor.linux import listeners, usage
from supervisor.linux.exhaustion import look
from supervisor.logs.pump import LogPump
from supervisor.process.process import Process
from supervisor.readiness.hint import Hint
from supervisor.readiness.identity import check_model, check_owner
from supervisor.readiness.probe import NotUp, Why, import_client, probe
from supervisor.readiness.progress import LoadMeter
from supervisor.timing.limits import running_limit
from supervisor.timing.racing import race

_GROWTH: Final = 1.5
_LOOK_AROUND_S: Final = 1.0  # between two looks for other ports while probes are refused: /proc is not free


@dataclass(slots=True, kw_only=True)
class Polling:
    """How the wait goes, readable at any time.

    Attributes:
        probes: sent so far.
        answered: how many of them reached a server.
        last: why the last one failed; None: it succeeded, or there was none.
        detail: the same in words.
    """

    probes: int = 0
    answered: int = 0
    last: NotUp | None = None
    detail: str = "no probe was sent"


async def wait_for_load(child: Child, process: Process, pump: LogPump, hint: Hint, emit: Emitter) -> Polling:
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
        emit(events.LoadProgress(bytes=done, total_bytes=total, bytes_per_s=rate, eta_s=eta_s))

    meter = LoadMeter(
        usage.Session(process.pid, child.cookie),
        child.profile.weights,
        bytes_logged=lambda: pump.bytes_seen,
        probes_answered=lambda: polling.answered,
        on_progress=report,
    )

    async def up() -> None:
        async with running_limit(limits.start_s):
            await poll_until_up(child, polling, hint, on_waiting=partial(report_waiting, emit))
            return
        hopeless = polling.last is not None and polling.last.why in (Why.WRONG_PATH, Why.NOT_HTTP)
        raise ReadinessTimeout(waited_s=0.0, probes=polling.probes, detail=polling.detail, may_still_load=not hopeless)

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


async def poll_until_up(child: Child, polling: Polling, hint: Hint, *, on_waiting: Callable[[int, str], None]) -> None:
    """Polls until the server is up *and* is ours *and* serves the model that the profile names. Has no end of its own.

    Args:
        child: the life in question.
        polling: kept up to date, for whoever gives up on the wait.
        hint: ends a pause early.
        on_waiting: (failures, detail), called every `health.log_every` failures, and at the first one that
            tells of a wrong health path.

    Raises:
        PortTaken: the one who answers is not a process of the child's.
        WrongModel: the child is up without the model.
    """
    health = child.profile.health
    quick = 0  # the attempt at which the pace began anew
    others = _OtherPorts(child)

    def delay_s(state: RetryCallState) -> float:
        return min(health.poll_min_s * _GROWTH ** min(state.attempt_number - quick - 1, 64), health.slowest_poll_s)

    async def sleep(delay: float) -> None:
        nonlocal quick
        if await hint.sleep(delay):
            quick = polling.probes

    said_wrong_path = False

    def report(state: RetryCallState) -> None:
        nonlocal said_wrong_path
        # That seldom gets better by itself: it is said at once, and then as often as the rest.
        wrong_path = polling.last is not None and polling.last.why is Why.WRONG_PATH
        if state.attempt_number % health.log_every == 0 or (wrong_path and not said_wrong_path):
            said_wrong_path |= wrong_path
            on_waiting(state.attempt_number, polling.detail)

    await import_client()
    async with child.client(timeout_s=child.profile.timeouts.probe_s) as client:

        async def attempt() -> NotUp | None:
            polling.probes += 1
            not_up = await probe(client, child)
            refused = not_up is not None and not_up.why is Why.REFUSED
            polling.answered += not refused
            if not_up is None:
                not_up = await check_owner(child) or await check_model(client, child)
            polling.last, polling.detail = not_up, not_up.detail if not_up else "up"
            if refused:
                polling.detail += await others.describe()
            return not_up

        # No stop: the deadline is the caller's, who races this wait against everything else that can happen.
        retrying = AsyncRetrying(
            sleep=sleep, wait=delay_s, retry=retry_if_result(lambda not_up: not_up is not None), before_sleep=report
        )
        await retrying(attempt)


class _OtherPorts:
    """Ports other than the wanted one that the child listens on: a common reason why probes are refused."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._ports: list[int] = []
        self._looked_at = time.monotonic()

    async def describe(self) -> str:
        """A remark in brackets, or nothing; /proc is looked at once a second at most."""
        child = self._child
        if time.monotonic() - self._looked_at >= _LOOK_AROUND_S and child.pid:
            vital = child.profile.vital
            ports = await look(partial(listeners.listening_ports, child.pid, child.cookie, besides=vital)) or ()
            self._ports, self._looked_at = [port for port in ports if port != child.port], time.monotonic()
        return f" (the child listens on port {', '.join(map(str, self._ports))} instead)" if self._ports else ""


def report_waiting(emit: Emitter, failures: int, detail: str) -> None:
    """Reports failed probes as an event."""
    emit(events.HealthWaiting(failures=failures, detail=detail))
