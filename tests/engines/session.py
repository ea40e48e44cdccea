"""One supervised engine: the lifecycle that the checks act on, and what was seen of it."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TextIO, TypeVar

import anyio
import anyio.to_thread

from engines.recipe import LEADER, Recipe
from engines.traces import Trace, trace_of
from supervisor import Child, Hooks, Profile, Restart, Supervised, SupervisorError, events, supervise
from supervisor.engines.base import Engine
from supervisor.events import Event
from supervisor.linux import files, processes
from supervisor.steps import Step, step

__all__ = ["CheckFailed", "Ended", "Session", "start"]

E = TypeVar("E", bound=Event)
_LOOK_S = 0.01


class CheckFailed(Exception):
    """What a check found."""


class Ended(CheckFailed):
    """The supervision has ended, so that nothing more can be checked."""


@dataclass(slots=True, kw_only=True)
class Session:
    """A supervised engine and its events.

    Attributes:
        recipe, engine, profile: what runs.
        handle: of the lifecycle.
        events: all so far, with the moment at which each was seen (monotonic).
        asleep: the Hooks whose `sleep` and `wake` the next seal and resume use.
        pings: whether the watchdog sends inferences: only while a hang is looked for, for they change batches.
        error: how the supervision ended by itself.
        reference: the answers of the first life, which later ones must repeat.
        stop: stops the supervision and waits for its end.
    """

    recipe: Recipe
    engine: Engine
    profile: Profile
    log: TextIO
    handle: Supervised | None = None
    events: list[tuple[float, Event]] = field(default_factory=list)
    asleep: Hooks = field(default_factory=Hooks)
    pings: bool = False
    error: BaseException | None = None
    reference: dict[str, object] = field(default_factory=dict)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    over: anyio.Event = field(default_factory=anyio.Event)

    @property
    def child(self) -> Child:
        """The present child."""
        return self.server.child

    @property
    def server(self) -> Supervised:
        """The handle; raises Ended when there is nothing to handle."""
        if self.handle is None or self.over.is_set():
            raise Ended(f"the supervision has ended: {self.error or 'it was stopped'}")
        return self.handle

    def __call__(self, event: Event) -> None:
        """Observe an event."""
        self.events.append((time.monotonic(), event))
        if isinstance(event, events.ChildLog):
            self.log.write(f"{event.line}\n")
        elif not isinstance(event, events.LoadProgress | events.HealthWaiting):
            self.log.write(f"--- {event}\n")

    def since(self, kind: type[E], moment: float) -> list[tuple[float, E]]:
        """The events of a class that came after a moment, each with its own."""
        return [(at, event) for at, event in self.events if at >= moment and isinstance(event, kind)]

    async def wait_for(self, kind: type[E], since: float, limit_s: float, what: str) -> tuple[float, E]:
        """Return the first such event after a moment: seconds from there, and the event.

        Raises:
            CheckFailed: it did not come within the limit.
            Ended: the supervision ended instead.
        """
        ends = since + limit_s
        while not (found := self.since(kind, since)):
            if self.over.is_set():
                raise Ended(f"{what} was waited for, but the supervision ended: {self.error}")
            if time.monotonic() > ends:
                raise CheckFailed(f"{what} did not come within {limit_s:g} s")
            await anyio.sleep(_LOOK_S)
        at, event = found[0]
        return at - since, event

    async def processes_like(self, pattern: str) -> list[int]:
        """Members of the tree whose name or command line matches; `LEADER` is the leader alone."""
        child = self.child
        assert child.pid is not None
        if pattern == LEADER:
            return [child.pid]
        members = await anyio.to_thread.run_sync(processes.members, child.pid, child.cookie)
        return [pid for pid in members if re.search(pattern, _described(pid))]

    async def trace(self) -> Trace:
        """What the tree holds now that could stay behind."""
        child = self.child
        assert child.pid is not None
        return await anyio.to_thread.run_sync(trace_of, child.pid, child.cookie)

    async def stop(self) -> None:
        """Stop the supervision and wait for its end."""
        self.scope.cancel()
        await self.over.wait()


def _described(pid: int) -> str:
    try:
        name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        name = ""
    return f"{name}\n{' '.join(files.argv(pid))}"


@asynccontextmanager
async def start(recipe: Recipe, engine: Engine, log: TextIO) -> AsyncIterator[Session]:
    """Supervise the engine until READY, and until the end of the block.

    Raises:
        SupervisorError: it never became READY.
    """
    profile = _watched(await anyio.to_thread.run_sync(engine.profile), recipe)
    session = Session(recipe=recipe, engine=engine, profile=profile, log=log)
    async with anyio.create_task_group() as group:
        ready = anyio.Event()
        group.start_soon(_supervise, session, _hooks(session), ready)
        while not ready.is_set() and not session.over.is_set():
            await anyio.sleep(_LOOK_S)
        if session.handle is not None:
            try:
                yield session
            finally:
                with anyio.CancelScope(shield=True):
                    await session.stop()
    if session.handle is None:
        raise session.error or Ended("the supervision ended before READY")


async def _supervise(session: Session, hooks: Hooks, ready: anyio.Event) -> None:
    class Started:
        def started(self, value: Supervised | None = None) -> None:
            session.handle = value
            ready.set()

    try:
        with session.scope:
            await supervise(session.profile, hooks, task_status=Started())
    except SupervisorError as error:
        session.error = error
    finally:
        session.over.set()


def _watched(profile: Profile, recipe: Recipe) -> Profile:
    """The profile with restarts and a quick watchdog; everything else is as the engine's settings have it."""
    liveness = replace(profile.liveness, armed="ready", period_s=2.0, misses=3, inference_every_s=5.0, step_s=6.0)
    return replace(
        profile,
        restart=Restart(policy="on-failure", max_restarts=20, backoff_s=0.1, jitter=0.0),
        liveness=liveness,
        timeouts=replace(profile.timeouts, start_s=recipe.start_s, probe_s=max(profile.timeouts.probe_s, 5.0)),
    )


def _hooks(session: Session) -> Hooks:
    """The engine's own Steps, with the recipe's and the harness' added."""
    recipe, own = session.recipe, session.engine.hooks()
    golden = recipe.golden()

    def gated(inner: Step) -> Step:
        async def run(child: Child) -> None:
            if session.pings:
                await inner(child)

        return step(inner.name, run, deadline_s=inner.deadline_s)

    def chosen(point: str) -> Callable[[Child], object]:
        async def run(child: Child) -> None:
            for inner in getattr(session.asleep, point):
                await inner(child)

        return run

    added = Hooks(
        warmup=recipe.warmup,
        before_seal=(*(one.record for one in golden), recipe.contract),
        sleep=(step("the way to sleep that is tried", chosen("sleep")),),  # type: ignore[arg-type]
        wake=(step("its way to wake", chosen("wake")),),  # type: ignore[arg-type]
        after_resume=tuple(one.replay for one in golden),
        observers=(session,),
    )
    hooks = replace(own, sleep=(), wake=()) + added
    return replace(hooks, liveness=tuple(map(gated, (*own.liveness, *recipe.liveness))))
