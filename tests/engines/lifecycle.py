"""The checks of an engine's lifecycle, in their order: each is a function of the session that returns what it saw."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import anyio
import anyio.to_thread

from engines.answers import Reply, ask_for, difference
from engines.recipe import LEADER, Recipe, Sleep
from engines.session import CheckFailed, Session
from hooks.auth import AuthCheck
from hooks.http.dialect import read
from supervisor import Hooks, State, events

__all__ = ["Check", "Seen", "plan"]

_RESTART_S: Final = 60.0  # beside the cold start itself: the teardown of a child that is stopped or half dead


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a check that passed has seen.

    Attributes:
        seconds: of that which matters: until READY, until noticed; not of the check.
        detail: for people; empty when the seconds say it all.
    """

    seconds: float
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the table.

    Attributes:
        name: one of `recipe.CHECKS`; variant: which process or way to sleep, else empty.
        run: raises CheckFailed, or what a Step raises.
        none: why the engine has no such thing, and nothing is run.
    """

    name: str
    variant: str = ""
    run: Callable[[Session], Awaitable[Seen]] | None = None
    none: str = ""

    @property
    def title(self) -> str:
        """Name and variant."""
        return f"{self.name}: {self.variant}" if self.variant else self.name


def plan(recipe: Recipe) -> tuple[Check, ...]:
    """Return every check of a recipe, in an order in which one start of the server serves as many as possible.

    The hang and each crash end a life, and the restart that follows is the next one's start; the stop ends the last.
    """
    sleeps = (
        [Check(name="sleep", none=recipe.sleeps)]
        if isinstance(recipe.sleeps, str)
        else [Check(name="sleep", variant=way.name, run=partial(sleep, way=way)) for way in recipe.sleeps]
    )
    return (
        Check(name="load", run=load),
        Check(name="warm", run=warm),
        Check(name="auth", run=auth),
        Check(name="answers", run=answers),
        Check(name="seal", run=seal),
        *sleeps,
        Check(name="hang", run=hang),
        *(
            Check(name="crash", variant=name, run=partial(crash, pattern=pattern))
            for name, pattern in recipe.processes.items()
        ),
        Check(name="stop", run=stop),
    )


async def load(session: Session) -> Seen:
    """The server loads and says that it is up."""
    _, up = session.since(events.ChildUp, 0)[0]
    progress = [event for _, event in session.since(events.LoadProgress, 0)]
    read_bytes = max((event.bytes for event in progress), default=0)
    return Seen(seconds=up.waited_s, detail=f"{read_bytes / 1e6:.1f} MB of weights seen" if read_bytes else "")


async def warm(session: Session) -> Seen:
    """The warmup Steps pass on a server that is up."""
    passed = [event for _, event in session.since(events.WarmupPassed, 0)]
    return Seen(seconds=sum(event.took_s for event in passed), detail=", ".join(event.step for event in passed))


async def auth(session: Session) -> Seen:
    """Strangers are refused on every route that generates or administrates, and the key opens the server."""
    began, dialect = time.monotonic(), session.profile.dialect
    await AuthCheck()(session.child)
    routes = len(dialect.generating) + len(dialect.admin_paths)
    return Seen(seconds=time.monotonic() - began, detail=f"{routes} routes refuse strangers")


async def answers(session: Session) -> Seen:
    """Each request gets the same answer twice."""
    began, words = time.monotonic(), []
    for number, request in enumerate(session.recipe.requests):
        first, second = [await ask_for(session.child, request) for _ in range(2)]
        if wrong := difference(first, second, session.recipe.tolerance):
            raise CheckFailed(f"{request.path} does not answer the same twice: {wrong}")
        session.reference[f"{number} {request.path}"] = first
        words.append(f"{request.path}: {first.words}")
    return Seen(seconds=time.monotonic() - began, detail="; ".join(words))


async def seal(session: Session, way: Sleep | None = None) -> Seen:
    """The server is sealed with golden answers and contract, and resumes in place with the same answers."""
    began, pid = time.monotonic(), session.child.pid
    session.asleep = way.hooks(session.engine) if way else Hooks()
    await session.server.seal()
    sealed_s = time.monotonic() - began
    said = ""
    try:
        if way:
            said = await _sleeps(session, way)
    finally:
        resumes = time.monotonic()
        await session.server.resume()
        session.asleep = Hooks()
    resumed_s = time.monotonic() - resumes
    if session.child.pid != pid:
        why = [event.detail for _, event in session.since(events.Failed, began)]
        raise CheckFailed(f"the resume was healed by a cold start: {'; '.join(why)}")
    await _answers_as_before(session)
    return Seen(seconds=sealed_s, detail=f"{said}resumed in {resumed_s:.2f} s, answers as before")


async def sleep(session: Session, way: Sleep) -> Seen:
    """The server sleeps at the seal, says so, and wakes with the same answers."""
    return await seal(session, way)


async def _sleeps(session: Session, way: Sleep) -> str:
    """What the server says of itself while it sleeps."""
    child, said = session.child, []
    reading = child.profile.dialect.asleep
    if reading is not None:
        if await read(child, reading) is not True:
            raise CheckFailed(f"{reading.path} does not say that the server sleeps")
        said.append(f"{reading.path} says asleep")
    if way.healthy is not None:
        path = child.profile.health.path
        async with child.client(timeout_s=10) as client:
            status = (await client.get(path)).status_code
        if status != way.healthy:
            raise CheckFailed(f"{path} answers {status} while it sleeps, not {way.healthy}")
        said.append(f"{path} answers {status}")
    return "".join(f"{word}, " for word in said)


async def hang(session: Session) -> Seen:
    """A process that is stopped (SIGSTOP) is noticed, and a cold start heals it."""
    pattern = session.recipe.hang
    pid = await _victim(session, pattern)
    session.pings = True
    try:
        began = time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        limit_s = session.recipe.hang_s
        noticed_s, seen = await session.wait_for(events.ChildUnresponsive, began, limit_s, "the notice of the hang")
        return await _healed(session, began, noticed_s, seen.detail)
    finally:
        session.pings = False


async def crash(session: Session, pattern: str) -> Seen:
    """A process that is killed is noticed, and a cold start heals it; nothing of the old life stays."""
    pid, trace = await _victim(session, pattern), await session.trace()
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    limit_s = session.recipe.notice_s
    noticed_s, _ = await session.wait_for(events.Stopping, began, limit_s, "the notice of the crash")
    _, failed = await session.wait_for(events.Failed, began, limit_s + _RESTART_S, "the end of the crashed life")
    seen = await _healed(session, began, noticed_s, failed.error)
    if left := await anyio.to_thread.run_sync(trace.left):
        raise CheckFailed(f"left behind by the crashed life: {', '.join(left)}")
    stays = trace.files_left()
    return Seen(seconds=seen.seconds, detail=f"{seen.detail}{_stays(stays)}")


async def stop(session: Session) -> Seen:
    """The server ends when it is asked to, without KILL, and leaves no process and no port."""
    trace, began = await session.trace(), time.monotonic()
    await session.stop()
    took_s = time.monotonic() - began
    if session.error is not None:
        raise CheckFailed(f"it ended with {session.error}")
    _, exited = session.since(events.ChildExited, began)[-1]
    _, torn = session.since(events.TeardownFinished, began)[-1]
    if torn.escalated:
        raise CheckFailed(f"the grace period of {session.profile.stop.grace_s:g} s was not enough: KILL was needed")
    if left := [*torn.survivors, *await anyio.to_thread.run_sync(trace.left)]:
        raise CheckFailed(f"left behind: {', '.join(left)}")
    how = exited.signal or f"code {exited.exit_code}"
    return Seen(seconds=took_s, detail=f"{how}{_stays(trace.files_left())}")


async def _victim(session: Session, pattern: str) -> int:
    found = await session.processes_like(pattern)
    if not found:
        raise CheckFailed(f"no process of the tree is like {pattern!r}")
    return found[-1] if pattern != LEADER else found[0]


async def _healed(session: Session, began: float, noticed_s: float, said: str) -> Seen:
    limit_s = noticed_s + session.recipe.start_s + _RESTART_S
    ready_s, _ = await session.wait_for(events.ChildReady, began, limit_s, "the restart")
    while session.server.state is not State.READY:
        await anyio.sleep(0.01)
    await _answers_as_before(session)
    teardown = session.since(events.TeardownFinished, began)
    ended = f", ended in {teardown[0][1].took_s:.1f} s" if teardown else ""
    return Seen(
        seconds=noticed_s, detail=f"{_first_line(said)}{ended}, READY again after {ready_s:.0f} s, answers as before"
    )


async def _answers_as_before(session: Session) -> None:
    for number, request in enumerate(session.recipe.requests):
        before = session.reference.get(f"{number} {request.path}")
        if isinstance(before, Reply):
            now = await ask_for(session.child, request)
            if wrong := difference(before, now, session.recipe.tolerance):
                raise CheckFailed(f"{request.path} answers otherwise than before: {wrong}")


def _stays(paths: list[str]) -> str:
    return f"; stays in shared memory: {', '.join(paths)}" if paths else ""


def _first_line(text: str) -> str:
    line = text.strip().split("\n")[0]
    return line if len(line) <= 160 else f"{line[:160]}..."
