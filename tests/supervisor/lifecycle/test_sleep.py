"""`sleep` and `wake`: the engine sleeps while sealed, and is woken before anything else is asked of it."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import replace

import anyio
import pytest

from supervisor import Child, Health, Hooks, Restart, State, Supervised, supervise
from supervisor import events as ev
from supervisor.errors import StepFailed, StillAsleep
from support import Do, Recorder, alive, fake_profile, is_in, until_async

pytestmark = pytest.mark.anyio

QUICK = Restart(policy="on-failure", backoff_s=0.01, jitter=0.0)


class Order:
    """Steps and probes, in the order in which they came; Steps named in `broken` fail."""

    def __init__(self, *broken: str) -> None:
        self.seen: list[str] = []
        self.broken = set(broken)
        self.recorder = Recorder()
        self.health = Health(accept=self._accept)

    def _accept(self, status: int, _: str) -> str | None:
        self.seen.append("probe")
        return None if status == 200 else f"HTTP {status}"

    def step(self, name: str) -> Do:
        def act(_: Child) -> None:
            self.seen.append(name)
            if name in self.broken:
                raise ValueError(f"{name} on purpose")

        return Do(action=act, name=name)

    def hooks(self, *points: str) -> Hooks:
        names = points or ("before_seal", "sleep", "wake", "after_resume", "before_stop")
        return Hooks(observers=(self.recorder,), **{name: (self.step(name),) for name in names})

    def steps(self) -> list[str]:
        """What came, the probes left out."""
        return [name for name in self.seen if name != "probe"]


async def test_the_engine_sleeps_while_sealed() -> None:
    """Seal: `before_seal`, then `sleep`. Resume: `wake` before any probe, then health, then `after_resume`."""
    order = Order()
    async with anyio.create_task_group() as tasks:
        server: Supervised = await tasks.start(supervise, fake_profile(health=order.health), order.hooks())
        await server.seal()
        assert order.steps() == ["before_seal", "sleep"]
        order.seen.clear()
        await server.resume()
        assert order.seen == ["wake", "probe", "after_resume"]
        assert is_in(server, State.READY)
        tasks.cancel_scope.cancel()
    assert order.steps() == ["wake", "after_resume", "before_stop"]
    points = [event.point for event in order.recorder.of(ev.StepPassed)]
    assert points == ["before_seal", "sleep", "wake", "after_resume", "before_stop"]


async def test_a_refusal_before_the_sleep_wakes_nobody() -> None:
    """A `before_seal` Step that refuses leaves the engine awake: neither `sleep` nor `wake` runs."""
    order = Order("before_seal")
    async with anyio.create_task_group() as tasks:
        server: Supervised = await tasks.start(supervise, fake_profile(), order.hooks())
        with pytest.raises(StepFailed) as caught:
            await server.seal()
        assert (caught.value.point, order.seen) == ("before_seal", ["before_seal"])
        assert is_in(server, State.READY)
        tasks.cancel_scope.cancel()


async def test_a_failed_sleep_is_undone() -> None:
    """A failed `sleep` Step refuses the seal; the `wake` Steps run, and the same child is READY and can be sealed."""
    order = Order("sleep")
    async with anyio.create_task_group() as tasks:
        server: Supervised = await tasks.start(supervise, fake_profile(), order.hooks())
        pid = server.pid
        with pytest.raises(StepFailed, match="sleep on purpose") as caught:
            await server.seal()
        assert caught.value.point == "sleep"
        assert order.steps() == ["before_seal", "sleep", "wake"]
        assert is_in(server, State.READY)
        order.broken.clear()
        await server.seal()
        assert is_in(server, State.SEALED)
        assert server.pid == pid
        tasks.cancel_scope.cancel()
    assert [event.point for event in order.recorder.of(ev.StepFailed)] == ["sleep"]


async def test_a_child_that_neither_sleeps_nor_wakes_is_replaced() -> None:
    """Within the budget: the seal raises what was wrong, and a fresh child is READY."""
    order = Order("sleep", "wake")
    async with anyio.create_task_group() as tasks:
        server: Supervised = await tasks.start(supervise, fake_profile(restart=QUICK), order.hooks())
        old = server.pid
        with pytest.raises(StepFailed, match="wake on purpose") as caught:
            await server.seal()
        assert any("sleep on purpose" in note for note in caught.value.__notes__)
        await until_async(lambda: len(order.recorder.of(ev.ChildReady)) == 2)
        assert server.pid != old
        assert not alive(old)
        tasks.cancel_scope.cancel()
    assert order.recorder.of(ev.Stopping)[0].asked is False


async def test_without_a_budget_a_child_that_does_not_wake_is_the_end() -> None:
    """The seal and the supervision raise the failed `wake` Step."""
    order = Order("sleep", "wake")
    with pytest.raises(StepFailed, match="wake on purpose"):
        try:
            async with anyio.create_task_group() as tasks:
                server: Supervised = await tasks.start(supervise, fake_profile(), order.hooks())
                with pytest.raises(StepFailed, match="wake on purpose"):
                    await server.seal()
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
    assert "before_stop" not in order.seen


async def test_a_failed_wake_is_healed_by_a_cold_start() -> None:
    """A resume whose `wake` Step fails never probes the sleeping child; it returns when a fresh one is READY."""
    order = Order("wake")
    async with anyio.create_task_group() as tasks:
        profile = fake_profile(restart=replace(QUICK, policy="on-resume"), health=order.health)
        server: Supervised = await tasks.start(supervise, profile, order.hooks())
        old = server.pid
        await server.seal()
        order.seen.clear()
        await server.resume()
        assert order.seen[:2] == ["wake", "probe"]
        assert "after_resume" not in order.seen  # the fresh child was not asleep, and is verified by its warmup
        assert is_in(server, State.READY)
        assert server.pid != old
        spawned = order.recorder.events.index(order.recorder.of(ev.ChildSpawned)[1])
        assert ev.StepFailed in [type(event) for event in order.recorder.events[:spawned]]
        tasks.cancel_scope.cancel()


async def test_a_child_that_dies_asleep_is_replaced_at_the_resume() -> None:
    """The death ends the `wake` Step at once, and is what counts."""
    recorder = Recorder()
    wake = Do(action=lambda _: anyio.sleep_forever(), name="wake")
    hooks = Hooks(sleep=(Do(name="sleep"),), wake=(wake,), observers=(recorder,))
    async with anyio.create_task_group() as tasks:
        server: Supervised = await tasks.start(supervise, fake_profile(restart=QUICK), hooks)
        await server.seal()
        old = server.pid
        assert old
        os.kill(old, signal.SIGKILL)
        await until_async(lambda: not alive(old))
        await server.resume()
        assert is_in(server, State.READY)
        tasks.cancel_scope.cancel()
    assert recorder.of(ev.Failed)[0].error == "ChildCrashed"


@pytest.mark.parametrize(("points", "ran"), [(("sleep", "before_stop"), False), (("before_seal", "before_stop"), True)])
async def test_a_sleeping_engine_is_torn_down_without_a_word(points: tuple[str, ...], ran: bool) -> None:
    """A stop while asleep runs no `before_stop` Step, which might ask the engine; while merely sealed it does."""
    order = Order()
    async with anyio.create_task_group() as tasks:
        server: Supervised = await tasks.start(supervise, fake_profile(), order.hooks(*points))
        await server.seal()
        tasks.cancel_scope.cancel()
    assert ("before_stop" in order.seen) is ran
    assert order.recorder.names[-1] == "supervision.stopped"
    assert order.recorder.one(ev.ChildExited).exit_code == 0


async def test_a_stop_half_asleep_is_a_plain_teardown() -> None:
    """A stop in the middle of a `sleep` Step wakes nobody and asks nothing more of the engine."""
    order = Order()
    half = Do(action=lambda _: anyio.sleep_forever(), name="half")
    hooks = replace(order.hooks(), sleep=(half,))
    async with anyio.create_task_group() as tasks:
        server: Supervised = await tasks.start(supervise, fake_profile(), hooks)

        async def seal() -> None:
            with suppress(anyio.get_cancelled_exc_class()):
                await server.seal()

        tasks.start_soon(seal)
        await until_async(lambda: bool(half.calls))
        tasks.cancel_scope.cancel()
    assert order.steps() == ["before_seal"]
    assert order.recorder.names[-1] == "supervision.stopped"


async def test_an_engine_that_cannot_be_woken_now_sleeps_on() -> None:
    """A `wake` Step that raises StillAsleep is answered with its words; SEALED stays, and a later resume may work."""
    refusals = [StillAsleep(reason="the GPU is full")]

    def wake(_: Child) -> None:
        if refusals:
            raise refusals.pop()

    seen = Recorder()
    hooks = Hooks(sleep=(Do(),), wake=(Do(action=wake),), observers=(seen,))
    async with anyio.create_task_group() as tasks:
        server: Supervised = await tasks.start(supervise, fake_profile(restart=QUICK), hooks)
        await server.seal()
        with pytest.raises(StepFailed, match="it sleeps on, unharmed: the GPU is full"):
            await server.resume()
        assert is_in(server, State.SEALED)
        await server.resume()
        assert is_in(server, State.READY)
        assert len(seen.of(ev.ChildSpawned)) == 1
        tasks.cancel_scope.cancel()
