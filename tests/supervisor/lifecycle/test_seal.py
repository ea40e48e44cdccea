"""Seal and resume on real processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import anyio
import pytest

from hooks.warmup.steps import Text
from supervisor import (
    Child,
    Hooks,
    Liveness,
    Restart,
    State,
    Timeouts,
    supervise,
)
from supervisor import events as ev
from supervisor.errors import (
    ChildCrashed,
    IllegalState,
    StepFailed,
)
from supervisor.lifecycle.handle import Supervised
from support import Do, Recorder, alive, fake_profile, is_in, until_async

pytestmark = pytest.mark.anyio


def fail(_: Child) -> None:
    raise ValueError("on purpose")


QUICK = Restart(policy="on-failure", backoff_s=0.01, jitter=0.0)


async def test_seal_and_resume() -> None:
    """Sealed: Steps passed, no socket of ours is open; resumed: health and Steps verified, serving again."""
    before, after = Do(action=lambda _: None, name="before"), Do(action=lambda _: None, name="after")
    seen = Recorder()
    hooks = Hooks(warmup=(Text(),), before_seal=(before,), after_resume=(after,), observers=(seen,))
    async with anyio.create_task_group() as tasks:
        server: Supervised = await tasks.start(supervise, fake_profile(), hooks)
        await server.seal()
        assert is_in(server, State.SEALED)
        assert not _connections_to(server.child.port)
        with pytest.raises(IllegalState, match="cannot seal while sealed: it needs ready"):
            await server.seal()
        await server.resume()
        assert is_in(server, State.READY)
        with pytest.raises(IllegalState, match="cannot resume while ready"):
            await server.resume()
        await server.seal()
        tasks.cancel_scope.cancel()
    assert before.calls
    assert after.calls
    assert seen.names[-1] == "supervision.stopped"


def _connections_to(port: int) -> list[str]:
    """Established connections of this host to a local port, from /proc/net/tcp."""
    rows = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return [row for row in rows if row.split()[3] == "01" and row.split()[2].endswith(f":{port:04X}")]


async def test_no_deadline_spans_a_seal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that jumps by an hour while sealed fires nothing: no deadline, no missed check."""
    seen = Recorder()
    profile = fake_profile(
        timeouts=Timeouts(start_s=30, stall_s=30, resume_s=20), liveness=Liveness(period_s=0.05, misses=1)
    )
    async with anyio.create_task_group() as tasks:
        server: Supervised = await tasks.start(supervise, profile, Hooks(observers=(seen,)))
        await server.seal()
        jumped = time.monotonic
        monkeypatch.setattr(time, "monotonic", lambda: jumped() + 3600)
        await server.resume()
        await anyio.sleep(0.3)  # some periods of the watchdog
        assert is_in(server, State.READY)
        tasks.cancel_scope.cancel()
    assert not seen.of(ev.ChildUnresponsive)
    assert not seen.of(ev.Failed)


async def test_a_refused_seal_keeps_serving() -> None:
    """A `before_seal` Step that fails refuses the seal; the child stays READY and can be sealed later."""
    broken = [True]

    def check(_: Child) -> None:
        if broken[0]:
            raise ValueError("weights are mapped")

    async with anyio.create_task_group() as tasks:
        server: Supervised = await tasks.start(supervise, fake_profile(), Hooks(before_seal=(Do(action=check),)))
        with pytest.raises(StepFailed, match="weights are mapped"):
            await server.seal()
        assert is_in(server, State.READY)
        broken[0] = False
        await server.seal()
        assert is_in(server, State.SEALED)
        tasks.cancel_scope.cancel()


async def test_a_child_that_dies_sealed_is_replaced_at_the_resume() -> None:
    """Within the budget, resume cold-starts a fresh child in place and returns once that is READY."""
    seen = Recorder()
    async with anyio.create_task_group() as tasks:
        hooks = Hooks(warmup=(Text(),), observers=(seen,))
        server: Supervised = await tasks.start(supervise, fake_profile(restart=QUICK), hooks)
        old = server.pid
        await server.seal()
        assert old
        os.kill(old, signal.SIGKILL)
        await until_async(lambda: not alive(old))
        assert is_in(server, State.SEALED)
        assert len(seen.of(ev.ChildSpawned)) == 1  # no cold start before the resume: a snapshot may be under way
        await server.resume()
        assert is_in(server, State.READY)
        assert server.pid != old
        tasks.cancel_scope.cancel()
    assert len(seen.of(ev.WarmupPassed)) == 2


async def test_on_resume_heals_a_resume_and_nothing_else() -> None:
    """Policy `on-resume`: a child that died sealed is replaced at the resume; a crash while serving is the end."""
    seen = Recorder()
    profile = fake_profile(restart=Restart(policy="on-resume", backoff_s=0.01))
    with pytest.raises(ChildCrashed) as caught:
        try:
            async with anyio.create_task_group() as tasks:
                server: Supervised = await tasks.start(supervise, profile, Hooks(observers=(seen,)))
                await server.seal()
                assert server.pid
                os.kill(server.pid, signal.SIGKILL)
                await server.resume()
                assert is_in(server, State.READY)
                os.kill(server.pid, signal.SIGKILL)
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
    assert len(seen.of(ev.ChildReady)) == 2
    assert "no resume is under way" in caught.value.__notes__[0]


async def test_a_failed_resume_without_a_budget_is_the_end() -> None:
    """With no restarts to give, resume raises what was wrong, and so does the supervision."""
    hooks = Hooks(after_resume=(Do(action=fail),))
    with pytest.raises(StepFailed, match="on purpose"):
        try:
            async with anyio.create_task_group() as tasks:
                server: Supervised = await tasks.start(supervise, fake_profile(), hooks)
                await server.seal()
                with pytest.raises(StepFailed, match="on purpose"):
                    await server.resume()
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
