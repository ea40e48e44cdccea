"""A child that ends after READY, and the runs that follow it."""

from __future__ import annotations

import os
import signal

import anyio
import pytest

from hooks.warmup.steps import Text
from supervisor import (
    Hooks,
    Restart,
    supervise,
)
from supervisor import events as ev
from supervisor.errors import (
    ChildCrashed,
    DiedBeforeReady,
)
from supervisor.lifecycle.handle import Supervised
from support import Do, Recorder, alive, fake_profile, fate, until_async

pytestmark = pytest.mark.anyio


async def test_a_crash_after_ready() -> None:
    """A child that ends unasked after READY ends the supervision with its signal and its tail."""
    seen = Recorder()
    with pytest.raises(ChildCrashed) as caught:
        try:
            async with anyio.create_task_group() as tasks:
                server: Supervised = await tasks.start(supervise, fake_profile(), Hooks(observers=(seen,)))
                assert server.pid
                os.kill(server.pid, signal.SIGSEGV)
        except ExceptionGroup as group:  # the test's own task group wraps what its child raised
            raise group.exceptions[0] from None
    assert caught.value.signal == "SIGSEGV"
    assert caught.value.tail
    assert seen.names[-1] == "supervision.failed"


async def test_restart_within_the_budget() -> None:
    """On-failure: a crashed child is replaced on the same port, warmed again, until the budget is spent."""
    seen = Recorder()
    restart = Restart(policy="on-failure", max_restarts=2, backoff_s=0.01)
    with pytest.raises(ChildCrashed) as caught:
        try:
            async with anyio.create_task_group() as tasks:
                hooks = Hooks(warmup=(Text(),), observers=(seen,))
                server: Supervised = await tasks.start(supervise, fake_profile(restart=restart), hooks)
                port = server.child.port
                for life in (1, 2, 3):
                    await until_async(lambda life=life: len(seen.of(ev.ChildReady)) == life)  # type: ignore[misc]
                    assert server.child.port == port
                    assert server.pid
                    os.kill(server.pid, signal.SIGKILL)
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
    assert [event.attempt for event in seen.of(ev.ChildRestarting)] == [1, 2]
    assert len(seen.of(ev.WarmupPassed)) == 3
    assert len({event.pid for event in seen.of(ev.ChildReady)}) == 3
    assert "budget of 2 restarts" in caught.value.__notes__[0]


async def test_crash_loop_breaker() -> None:
    """Lives that never get ready break the loop before the budget is spent."""
    restart = Restart(policy="on-failure", max_restarts=50, backoff_s=0.01, crash_loop_after=3)
    error, seen = await fate(fake_profile("--die-while-loading", restart=restart))
    assert isinstance(error, DiedBeforeReady)
    assert len(seen.of(ev.ChildSpawned)) == 3
    assert "crash loop" in error.__notes__[0]


async def test_cancel_during_the_backoff() -> None:
    """A stop request between two lives is obeyed at once."""
    seen = Recorder()
    restart = Restart(policy="on-failure", backoff_s=600, backoff_max_s=600)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(supervise, fake_profile("--die-while-loading", restart=restart), Hooks(observers=(seen,)))
            await until_async(lambda: bool(seen.of(ev.ChildRestarting)))
            tasks.cancel_scope.cancel()
    assert seen.names[-1] == "supervision.stopped"


@pytest.mark.parametrize("state", ["child.spawned", "child.up", "warmup"])
async def test_cancel_anywhere(state: str) -> None:
    """Cancelling while loading or warming up stops the child and leaves nothing."""
    seen = Recorder()
    hang = Do(action=lambda _: anyio.sleep_forever())
    flags = ("--never-ready",) if state == "child.spawned" else ()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(supervise, fake_profile(*flags), Hooks(warmup=(hang,), observers=(seen,)))
        await until_async(lambda: state in seen.names if state != "warmup" else bool(hang.calls))
        tasks.cancel_scope.cancel()
    assert seen.names[-1] == "supervision.stopped"
    assert not alive(seen.one(ev.ChildSpawned).pid)
