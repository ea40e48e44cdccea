"""One run of the server: spawn, load, warm up, serve, seal, resume, teardown.

There is no state machine beside the code: the line that is being executed is the state.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, NoReturn, TypeVar

import anyio
from anyio.abc import TaskStatus

from supervisor import events
from supervisor.child import Child
from supervisor.emitter import Emitter
from supervisor.errors import (
    ChildCrashed,
    ChildUnresponsive,
    DiedBeforeReady,
    NotReady,
    SpawnError,
    StepFailed,
    StillAsleep,
    SupervisorError,
    WorkerDied,
    WorkerDiedBeforeReady,
)
from supervisor.events import State
from supervisor.lifecycle.control import Control
from supervisor.lifecycle.handle import Supervised
from supervisor.lifecycle.run_steps import attempt, describe, run_steps
from supervisor.linux.exhaustion import translated
from supervisor.logs.pump import LogPump, Stream
from supervisor.process.managed import managed
from supervisor.process.process import Process
from supervisor.process.spawn import launch
from supervisor.process.teardown import teardown
from supervisor.process.vital import VitalEnd, VitalProcesses
from supervisor.profile import Profile
from supervisor.readiness.hint import Hint
from supervisor.readiness.identity import wider_than_asked
from supervisor.readiness.probe import NotUp, Why, out_of_resources
from supervisor.readiness.wait import Polling, poll_until_up, report_waiting, wait_for_load
from supervisor.readiness.watchdog import Watchdog
from supervisor.steps import Hooks, Step
from supervisor.timing.limits import running_limit
from supervisor.timing.racing import race

T = TypeVar("T")

# A Step fails on a connection that the child's death has cut: the death is the cause, and is seen within this time.
_DEATH_FOLLOWS_S: Final = 0.25
# Between two looks for vital processes: engines start theirs while they load, and seldom one later.
_STARTING_LOOKS_S, _LATER_LOOKS_S = 0.5, 10.0


@dataclass(slots=True, kw_only=True)
class Supervision:
    """What outlives a run.

    Attributes:
        profile, hooks, emit: given.
        control: what the lifecycle shares with the host's handle.
        task_status: gets the handle at the first READY.
        started: whether it has.
        resumed: whether a resume has ended well, from which on `Liveness(armed="resume")` arms the watchdog.
    """

    profile: Profile
    hooks: Hooks
    emit: Emitter
    control: Control
    task_status: TaskStatus[Supervised]
    started: bool = False
    resumed: bool = False


@dataclass(slots=True)
class Run:
    """One child, from spawn to teardown.

    Attributes:
        supervision: that it is a part of.
        child: the present one; without a pid until the spawn.
        ready_s: how long it was READY; None: never.
    """

    supervision: Supervision
    child: Child
    _process: Process = field(init=False)
    _pump: LogPump = field(init=False)
    _hint: Hint = field(init=False)
    _vital: VitalProcesses | None = None
    _ready_at: float | None = None
    _asleep: bool = False
    ready_s: float | None = None

    async def until_ended(self) -> NoReturn:
        """Runs the child until something ends it.

        Raises:
            SupervisorError: why the run ended; after teardown, with the tail of the log.

        Cancellation is the request to stop: it tears the child down, shielded, and then goes on. One that comes during
        the teardown of a child that has failed does not hide the failure.
        """
        emit = self.supervision.emit
        try:
            try:
                before_start = self.supervision.hooks.before_start
                await run_steps("before_start", before_start, replace(self.child, port=0), emit)
                await self._spawn()
                try:
                    async with managed(self._process, self._pump, end=self._end, on_notice=self._notice):
                        await self._serve_until_ended()
                finally:
                    if self._vital is not None:
                        self._vital.close()
            except Exception as failure:
                # A SpawnError says more: the command, and what the system refused.
                error = failure if isinstance(failure, SpawnError) else translated(failure)
                self._report(error)
                if error is failure:
                    raise
                raise error from error.__cause__
        except anyio.get_cancelled_exc_class():
            emit(events.Stopped())
            raise

    async def _spawn(self) -> None:
        profile, emit, redact = self.supervision.profile, self.supervision.emit, self.child.redact
        self._hint = Hint(profile.health.ready_pattern, on_give_up=lambda what: emit(events.Notice(detail=what)))
        launched = await launch(self.child)
        self._process = launched.process
        self.child = self.supervision.control.child = replace(self.child, pid=self._process.pid, cookie=launched.cookie)
        if profile.vital:
            self._vital = VitalProcesses(profile.vital, self._process.pid, launched.cookie, redact)
        emit(events.ChildSpawned(pid=self._process.pid, argv=redact.argv(launched.argv)))
        self._pump = LogPump(
            {"stdout": self._process.stdout_fd, "stderr": self._process.stderr_fd},
            profile.logs,
            redact,
            on_line=self._on_line,
            on_dropped=lambda lines, lost: emit(events.LogDropped(lines=lines, bytes=lost)),
        )

    def _on_line(self, stream: Stream, level: events.Level, line: str) -> None:
        emit = self.supervision.emit
        if emit.state is State.LOADING:
            self._hint.see(line)
        emit(events.ChildLog(stream=stream, line=line, line_level=level))

    def _report(self, error: Exception) -> None:
        """Reports the failure of the run; the log's last lines go into the error."""
        if isinstance(error, NotReady | StepFailed | ChildCrashed | ChildUnresponsive) and self.child.pid is not None:
            error.tail = self._pump.tail()
            if isinstance(error, DiedBeforeReady):
                error.out_of_memory = self.child.profile.dialect.allocation_failure(error.tail)
        detail = error.summary if isinstance(error, SupervisorError) else describe(error)
        self.supervision.emit(events.Failed(error=type(error).__name__, detail=self.child.redact(detail)))

    async def _serve_until_ended(self) -> NoReturn:
        supervision, emit, hooks = self.supervision, self.supervision.emit, self.supervision.hooks
        control = supervision.control
        polling = await self._while_alive(
            partial(wait_for_load, self.child, self._process, self._pump, self._hint, emit)
        )
        emit(events.ChildUp(waited_s=self._waited_s(), probes=polling.probes))
        if (wider := await wider_than_asked(self.child)) is not None:
            self._notice(wider)
        await self._while_alive(partial(self._steps, "warmup", hooks.warmup))
        if self._vital is not None:
            await self._while_alive(self._vital.find)  # whoever is there at READY is watched from then on
        self._ready_at = time.monotonic()
        emit(events.ChildReady(waited_s=self._waited_s(), url=self.child.url, pid=self._process.pid))
        if not supervision.started:
            supervision.started = True
            supervision.task_status.started(Supervised(control))
        supervision.resumed |= control.pending("resume")
        control.answer()  # a resume that this run was the cure for
        while True:
            await self._while_alive(self._serve)
            if (took_s := await self._while_alive(self._seal)) is not None:
                emit(events.ChildSealed(took_s=took_s))
                control.answer()  # here, because from the host's next step on a death waits for the resume
                # Without _while_alive: a child that dies while sealed is replaced at the resume, not before, because
                # a cold start must not be what the snapshot catches.
                while True:
                    await control.next_request()
                    if await self._resume():
                        break

    async def _serve(self) -> None:
        """Until the host asks for a seal; the watchdog, if armed, lives exactly as long."""
        armed = self.supervision.profile.liveness.armed
        works: list[Callable[[], Awaitable[None]]] = [self.supervision.control.next_request]
        if armed == "ready" or (armed == "resume" and self.supervision.resumed):
            works.append(self._watch)
        await race(*works)

    async def _watch(self) -> NoReturn:
        emit = self.supervision.emit
        watchdog = Watchdog(
            child=self.child,
            steps=self.supervision.hooks.liveness,
            run_step=self._infer,
            on_shortage=lambda what: emit(events.Notice(detail=f"the watchdog is blind: {what}")),
            on_sleep=lambda asleep: emit(events.EngineAsleep() if asleep else events.EngineAwake()),
        )
        misses, detail = await watchdog.until_unresponsive()
        emit(events.ChildUnresponsive(misses=misses, detail=detail))
        raise ChildUnresponsive(misses=misses, detail=detail)

    async def _seal(self) -> float | None:
        """Returns the seconds that it took; None: a Step refused, and the child serves on."""
        began = time.monotonic()
        hooks = self.supervision.hooks
        try:
            await self._steps("before_seal", hooks.before_seal)
            self._asleep = bool(hooks.sleep)  # from the first of these Steps on, because half asleep is asleep
            await self._steps("sleep", hooks.sleep)
        except StepFailed as refusal:
            if self._asleep:
                await self._undo_sleep(refusal)
            self.supervision.control.answer(refusal)
            return None
        self._bank_ready_time()
        return time.monotonic() - began

    async def _undo_sleep(self, refusal: StepFailed) -> None:
        try:
            await self._wake()
        except StepFailed as failure:
            failure.add_note(f"It was to be woken because the seal had failed: {refusal.summary}")
            raise

    async def _wake(self) -> None:
        await self._steps("wake", self.supervision.hooks.wake)
        self._asleep = False

    async def _resume(self) -> bool:
        """Returns whether the child serves again; False: it sleeps on."""
        began = time.monotonic()
        supervision = self.supervision
        polling = Polling()
        on_waiting = partial(report_waiting, supervision.emit)

        async def verify() -> None:
            await self._wake()  # before any probe
            async with running_limit(supervision.profile.timeouts.resume_s) as limit:
                await poll_until_up(self.child, polling, Hint(None), on_waiting=on_waiting)
            if limit.cancelled_caught:
                raise ChildUnresponsive(misses=polling.probes, detail=f"after the resume: {polling.detail}")
            await self._steps("after_resume", supervision.hooks.after_resume)

        try:
            await self._while_alive(verify)
        except StepFailed as failure:
            if failure.point != "wake" or not isinstance(failure.__cause__, StillAsleep):
                raise
            supervision.control.answer(failure)
            return False
        self._ready_at = time.monotonic()
        supervision.resumed = True
        supervision.emit(events.ChildResumed(took_s=time.monotonic() - began))
        supervision.control.answer()
        return True

    async def _while_alive(self, work: Callable[[], Awaitable[T]]) -> T:
        """Does the work; the child's exit, or that of a vital process, ends it at once and is what counts."""
        error: SupervisorError | None = None

        async def until_exit() -> NoReturn:
            await self._process.exited.wait()
            raise self._death()

        async def until_loss() -> NoReturn:
            assert self._vital
            starting = self.supervision.emit.state in (State.LOADING, State.UP)
            raise self._loss(await self._vital.until_one_ends(_STARTING_LOOKS_S if starting else _LATER_LOOKS_S))

        try:
            result = await race(work, until_exit, *([until_loss] if self._vital else []))
        except SupervisorError as failure:
            error = failure
        if self._process.note_exit() and not (self._exited_cleanly() and _is_loss(error)):
            # A front that ends with code 0 after its worker: the worker's end is what happened.
            loss = self._vital.ended() if self._vital and self._exited_cleanly() else None
            raise (self._loss(loss) if loss else self._death()) from error
        if error is not None:
            raise error
        return result

    def _exited_cleanly(self) -> bool:
        return self._process.report is not None and self._process.report.exit_code == 0

    def _death(self) -> DiedBeforeReady | ChildCrashed:
        report = self._process.report
        assert report
        code, signal = report.exit_code, report.signal
        if during := self._starting():
            return DiedBeforeReady(exit_code=code, signal=signal, during=during, waited_s=report.uptime_s)
        return ChildCrashed(exit_code=code, signal=signal, uptime_s=report.uptime_s)

    def _loss(self, end: VitalEnd) -> WorkerDiedBeforeReady | WorkerDied:
        after_s = self._waited_s()
        if during := self._starting():
            return WorkerDiedBeforeReady(
                exit_code=end.exit_code,
                signal=end.signal,
                worker_pid=end.pid,
                worker=end.command,
                during=during,
                waited_s=after_s,
            )
        return WorkerDied(
            exit_code=end.exit_code, signal=end.signal, worker_pid=end.pid, worker=end.command, uptime_s=after_s
        )

    def _starting(self) -> str | None:
        """What goes on before READY, for errors."""
        state = self.supervision.emit.state
        assert state
        return {State.LOADING: "loading", State.UP: "warmup"}.get(state)

    async def _steps(self, point: str, steps: tuple[Step, ...]) -> None:
        try:
            await run_steps(point, steps, self.child, self.supervision.emit)
        except StepFailed:
            with anyio.move_on_after(_DEATH_FOLLOWS_S):
                await self._process.exited.wait()
            raise

    async def _infer(self, step: Step) -> NotUp | None:
        """Runs a liveness Step; returns why it failed."""
        cause = await attempt(step, self.child, limit_s=self.supervision.profile.liveness.step_s)
        if cause is None:
            return None
        why = Why.TIMED_OUT if isinstance(cause, TimeoutError) else Why.BROKEN
        return out_of_resources(cause) or NotUp(why=why, detail=self.child.redact(describe(cause)))

    async def _end(self, error: Exception | None) -> None:
        """Tears the child down; `error` None: as the host asked."""
        self._bank_ready_time()
        emit, asked = self.supervision.emit, error is None
        emit(events.Stopping(asked=asked, reason="" if error is None else type(translated(error)).__name__))
        try:
            # A sleeping engine takes no request.
            if asked and self.ready_s is not None and not self._asleep and not self._process.note_exit():
                for step in self.supervision.hooks.before_stop:
                    with contextlib.suppress(StepFailed):  # reported by its event; the stop goes on
                        await run_steps("before_stop", (step,), self.child, emit)
        finally:
            survivors = await self._teardown()
            if error is not None and survivors:
                error.add_note(f"These processes of the child could not be ended: {', '.join(survivors)}.")

    async def _teardown(self) -> tuple[str, ...]:
        emit, process = self.supervision.emit, self._process
        result = await teardown(process, self._pump, self.supervision.profile.stop, port=self.child.port)
        if process.report is not None:
            report = process.report
            emit(
                events.ChildExited(
                    pid=report.pid, exit_code=report.exit_code, signal=report.signal, uptime_s=report.uptime_s
                )
            )
        survivors = tuple(survivor.describe(self.child.redact) for survivor in result.survivors)
        emit(
            events.TeardownFinished(
                took_s=result.took_s, escalated=result.escalated, drained=result.drained, survivors=survivors
            )
        )
        return survivors

    def _notice(self, detail: str) -> None:
        self.supervision.emit(events.Notice(detail=detail))

    def _waited_s(self) -> float:
        return time.monotonic() - self._process.spawned_at

    def _bank_ready_time(self) -> None:
        # At the seal, because the clock jumps over a snapshot and suspension is no stable uptime.
        if self._ready_at is not None:
            self.ready_s = (self.ready_s or 0.0) + time.monotonic() - self._ready_at
            self._ready_at = None


def _is_loss(error: SupervisorError | None) -> bool:
    return isinstance(error, WorkerDied | WorkerDiedBeforeReady)
