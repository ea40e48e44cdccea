"""One life of the child: spawn, load, warm up, serve, seal, resume, teardown. The program counter is the state.

Over 250 lines because a life is read from top to bottom: split, its state would be spread over files.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, TypeVar

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
    StepFailed,
    SupervisorError,
)
from supervisor.events import State
from supervisor.lifecycle.handle import Supervised
from supervisor.lifecycle.run_steps import attempt, describe, run_steps
from supervisor.linux.exhaustion import translated
from supervisor.logs.pump import LogPump
from supervisor.process.process import Process
from supervisor.process.spawn import launch
from supervisor.process.teardown import plumb, teardown
from supervisor.profile import Profile
from supervisor.readiness.hint import Hint
from supervisor.readiness.probe import NotUp, Why, out_of_resources
from supervisor.readiness.wait import Polling, poll_until_up, report_waiting, wait_for_load
from supervisor.readiness.watchdog import Watchdog
from supervisor.steps import Hooks, Step
from supervisor.timing.limits import running_limit

T = TypeVar("T")

# A Step fails on a connection that the child's death has cut: the death is the news, and follows within this time.
_DEATH_FOLLOWS_S: Final = 0.25


@dataclass(slots=True, kw_only=True)
class Run:
    """What outlives a life."""

    profile: Profile
    hooks: Hooks
    emit: Emitter
    handle: Supervised
    task_status: TaskStatus[Supervised]
    told: bool = False
    resumed: bool = False


@dataclass(slots=True)
class Life:
    """One child, from spawn to teardown. `ready_s` tells how long it was READY; None: never."""

    run: Run
    child: Child
    _process: Process = field(init=False)
    _pump: LogPump = field(init=False)
    _hint: Hint = field(init=False)
    _ready_at: float | None = None
    ready_s: float | None = None

    async def live(self) -> None:
        """Runs until something ends it.

        Raises:
            SupervisorError: why the life ended; after teardown, with the tail of the log.

        Cancellation is the request to stop: it tears the child down, shielded, and then goes on.
        """
        run = self.run
        error: Exception | None = None
        try:
            try:
                await run_steps("before_start", run.hooks.before_start, replace(self.child, port=0), run.emit)
                self._spawn()
            except SupervisorError as failure:
                run.emit(events.Failed, error=type(failure).__name__, detail=failure.summary)
                raise
        except anyio.get_cancelled_exc_class():
            run.emit(events.Stopped)
            raise
        try:
            async with anyio.create_task_group() as tasks:
                plumbing = anyio.CancelScope(shield=True)  # outlives a stop request: teardown needs it
                tasks.start_soon(plumb, self._process, self._pump, plumbing)
                try:
                    await self._phases()
                except Exception as failure:  # noqa: BLE001  raised again below, outside the group
                    error = translated(failure)
                finally:
                    try:
                        with anyio.CancelScope(shield=True):
                            await self._end(error)
                    finally:
                        plumbing.cancel()
        except anyio.get_cancelled_exc_class():
            run.emit(events.Stopped)
            raise
        finally:
            self._process.close()
        assert error
        if isinstance(error, NotReady | StepFailed | ChildCrashed | ChildUnresponsive):
            error.tail = self._pump.tail()
        detail = error.summary if isinstance(error, SupervisorError) else describe(error)
        run.emit(events.Failed, error=type(error).__name__, detail=self.child.redact(detail))
        raise error

    def _spawn(self) -> None:
        profile, emit, redact = self.run.profile, self.run.emit, self.child.redact
        launched = launch(self.child)
        self._process = launched.process
        self.child = self.run.handle.child = replace(self.child, pid=self._process.pid, cookie=launched.cookie)
        emit(events.ChildSpawned, pid=self._process.pid, argv=redact.argv(launched.argv))
        self._hint = Hint(profile.health.ready_pattern, on_give_up=lambda what: emit(events.Notice, detail=what))
        self._pump = LogPump(
            {"stdout": self._process.stdout_fd, "stderr": self._process.stderr_fd},
            profile.logs,
            redact,
            on_line=self._on_line,
            on_dropped=lambda lines, lost: emit(events.LogDropped, lines=lines, bytes=lost),
        )

    def _on_line(self, stream: str, level: events.Level, line: str) -> None:
        if self.run.emit.state is State.LOADING:
            self._hint.see(line)
        self.run.emit(events.ChildLog, stream=stream, line=line, line_level=level)

    async def _phases(self) -> None:
        run, emit = self.run, self.run.emit
        polling = await self._while_alive(
            partial(wait_for_load, self.child, self._process, self._pump, self._hint, emit)
        )
        emit(events.ChildUp, waited_s=self._waited_s(), probes=polling.probes)
        await self._while_alive(partial(self._steps, "warmup", run.hooks.warmup))
        self._ready_at = time.monotonic()
        emit(events.ChildReady, waited_s=self._waited_s(), url=self.child.url, pid=self._process.pid)
        if not run.told:
            run.told = True
            run.task_status.started(run.handle)
        run.resumed |= run.handle.pending("resume")
        run.handle.answer()  # a resume that this life was the cure for
        while True:
            await self._while_alive(self._serve)
            if (took_s := await self._while_alive(self._seal)) is not None:
                emit(events.ChildSealed, took_s=took_s)
                run.handle.answer()  # here, because from the host's next step on a death waits for the resume
                # Without _while_alive: a child that dies while sealed is replaced at the resume, not before, because
                # a cold start must not be what the snapshot catches.
                await run.handle.next_request()
                await self._resume()

    async def _serve(self) -> None:
        """Until the host asks for a seal; the watchdog, if armed, lives exactly as long."""
        run = self.run
        armed = run.profile.liveness.armed
        failure: ChildUnresponsive | None = None
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                nonlocal failure
                dog = Watchdog(
                    child=self.child,
                    steps=run.hooks.liveness,
                    run_step=self._infer,
                    on_shortage=lambda what: run.emit(events.Notice, detail=f"the watchdog is blind: {what}"),
                )
                misses, detail = await dog.until_unresponsive()
                run.emit(events.ChildUnanswering, misses=misses, detail=detail)
                failure = ChildUnresponsive(misses=misses, detail=detail)
                tasks.cancel_scope.cancel()

            if armed == "ready" or (armed == "resume" and run.resumed):
                tasks.start_soon(watch)
            await run.handle.next_request()
            tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if not run.handle.pending("seal"):  # a seal that nobody asked for would switch the watchdog off for good
            raise RuntimeError("serving ended without a request, a failure or a cancellation")

    async def _seal(self) -> float | None:
        """Returns the seconds that it took; None: a Step refused."""
        began = time.monotonic()
        try:
            await self._steps("before_seal", self.run.hooks.before_seal)
        except StepFailed as refusal:
            self.run.handle.answer(refusal)
            return None
        self._bank_ready_time()
        return time.monotonic() - began

    async def _resume(self) -> None:
        began = time.monotonic()
        run = self.run
        polling = Polling()

        async def verify() -> None:
            async with running_limit(run.profile.timeouts.resume_s) as limit:
                await poll_until_up(self.child, polling, Hint(None), on_waiting=partial(report_waiting, run.emit))
            if limit.cancelled_caught:
                raise ChildUnresponsive(misses=polling.probes, detail=f"after the resume: {polling.detail}")
            await self._steps("after_resume", run.hooks.after_resume)

        await self._while_alive(verify)
        self._ready_at = time.monotonic()
        run.resumed = True
        run.emit(events.ChildResumed, took_s=time.monotonic() - began)
        run.handle.answer()

    async def _while_alive(self, work: Callable[[], Awaitable[T]]) -> T:
        """Does the work; the child's exit ends it at once and is what counts."""
        error: SupervisorError | None = None
        done: list[T] = []
        async with anyio.create_task_group() as tasks:

            async def until_exit() -> None:
                await self._process.exited.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(until_exit)
            try:
                done.append(await work())
            except SupervisorError as failure:
                error = failure
            tasks.cancel_scope.cancel()
        if self._process.note_exit():
            report, state = self._process.report, self.run.emit.state
            assert report and state
            during = {State.LOADING: "loading", State.UP: "warmup"}.get(state)
            if during is not None:
                raise DiedBeforeReady(
                    exit_code=report.exit_code, signal=report.signal, during=during, waited_s=report.uptime_s
                ) from error
            raise ChildCrashed(exit_code=report.exit_code, signal=report.signal, uptime_s=report.uptime_s) from error
        if error is not None:
            raise error
        return done[0]

    async def _steps(self, point: str, steps: tuple[Step, ...]) -> None:
        try:
            await run_steps(point, steps, self.child, self.run.emit)
        except StepFailed:
            with anyio.move_on_after(_DEATH_FOLLOWS_S):
                await self._process.exited.wait()
            raise

    async def _infer(self, step: Step) -> NotUp | None:
        """Runs a liveness Step; returns why it failed."""
        cause = await attempt(step, self.child, limit_s=self.run.profile.liveness.step_s)
        if cause is None:
            return None
        why = Why.TIMED_OUT if isinstance(cause, TimeoutError) else Why.BROKEN
        return out_of_resources(cause) or NotUp(why=why, detail=self.child.redact(describe(cause)))

    async def _end(self, error: Exception | None) -> None:
        run, process = self.run, self._process
        self._bank_ready_time()
        asked = error is None
        run.emit(events.Stopping, asked=asked, reason="" if asked else type(error).__name__)
        try:
            if asked and self.ready_s is not None and not process.note_exit():
                for step in run.hooks.before_stop:
                    with contextlib.suppress(StepFailed):  # reported by its event; the stop goes on
                        await run_steps("before_stop", (step,), self.child, run.emit)
        finally:
            await self._teardown()

    async def _teardown(self) -> None:
        run, process = self.run, self._process
        result = await teardown(process, self._pump, run.profile.stop, port=self.child.port)
        if process.report is not None:
            report = process.report
            run.emit(
                events.ChildExited,
                pid=report.pid,
                exit_code=report.exit_code,
                signal=report.signal,
                uptime_s=report.uptime_s,
            )
        run.emit(events.TeardownFinished, took_s=result.took_s, escalated=result.escalated, drained=result.drained)

    def _waited_s(self) -> float:
        return time.monotonic() - self._process.spawned_at

    def _bank_ready_time(self) -> None:
        # At the seal, because the clock jumps over a snapshot and suspension is no stable uptime.
        if self._ready_at is not None:
            self.ready_s = (self.ready_s or 0.0) + time.monotonic() - self._ready_at
            self._ready_at = None
