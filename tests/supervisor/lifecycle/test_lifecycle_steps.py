"""Steps at the lifecycle points of real processes."""

from __future__ import annotations

import asyncio
import traceback
from typing import Any

import anyio
import pytest

from hooks.warmup.steps import Text
from supervisor import (
    Child,
    Hooks,
    LogLimits,
    Secret,
    Stop,
    supervise,
)
from supervisor import events as ev
from supervisor.errors import (
    StepFailed,
)
from supervisor.lifecycle.handle import Supervised
from support import Do, Recorder, fake_profile, fate, until_async

pytestmark = pytest.mark.anyio


def fail(_: Child) -> None:
    raise ValueError("on purpose")


async def test_steps_run_in_order_and_see_the_child() -> None:
    """`before_start` sees no pid, `warmup` the running child, `before_stop` the child of a requested stop."""
    early, warm, late = (Do(action=lambda _: None, name=name) for name in ("early", "warm", "late"))
    seen = Recorder()
    hooks = Hooks(before_start=(early,), warmup=(warm,), before_stop=(late,), observers=(seen,))
    async with anyio.create_task_group() as tasks:
        server: Supervised = await tasks.start(supervise, fake_profile(), hooks)
        assert not late.calls
        tasks.cancel_scope.cancel()
    assert early.calls[0].pid is None
    assert warm.calls[0].pid == late.calls[0].pid == server.pid
    assert [(e.name, e.step) for e in seen.of(ev.StepPassed)] == [
        ("step.passed", "early"),
        ("warmup.passed", "warm"),
        ("step.passed", "late"),
    ]


async def test_before_start_failure_spawns_nothing() -> None:
    """A failed `before_start` Step ends it before any process exists."""
    error, seen = await fate(fake_profile(), Hooks(before_start=(Do(action=fail),)))
    assert isinstance(error, StepFailed)
    assert (error.point, error.reason) == ("before_start", "on purpose")
    assert isinstance(error.__cause__, ValueError)
    assert not seen.of(ev.ChildSpawned)


async def test_warmup_failure_shows_the_body() -> None:
    """An empty 200 is no readiness: the error names the Step and shows what came."""
    error, seen = await fate(fake_profile("--answer", "empty"), Hooks(warmup=(Text(),)))
    assert isinstance(error, StepFailed)
    assert (error.point, error.step, error.cli_status) == ("warmup", "text", 4)
    assert '"content": ""' in str(error)
    assert not seen.of(ev.ChildReady)


async def test_a_step_has_a_deadline() -> None:
    """A Step that hangs fails when its own deadline passes, and says so."""
    step = Do(action=lambda _: anyio.sleep_forever(), deadline_s=0.1)
    error, _ = await fate(fake_profile(), Hooks(warmup=(step,)))
    assert isinstance(error, StepFailed)
    assert error.reason == "no result within 0.1 s"


class Mute(Exception):
    """Its words cannot be had."""

    def __str__(self) -> str:
        raise AttributeError("no words")


def deep_group() -> ExceptionGroup[Exception]:
    """More groups in each other than the interpreter has frames for."""
    group: ExceptionGroup[Exception] = ExceptionGroup("innermost", [ValueError("at the bottom")])
    for _ in range(5000):
        group = ExceptionGroup("", [group])
    return group


@pytest.mark.parametrize(
    ("raised", "reason"),
    [(Mute(), "Mute"), (deep_group(), "at the bottom"), (SystemExit(9), "it called sys.exit(9)")],
    ids=["mute", "deep", "exit"],
)
async def test_whatever_a_step_raises_is_a_failed_step(raised: BaseException, reason: str) -> None:
    """An exception without words, a very deep group and sys.exit() fail the Step; the supervision says so as always."""

    def fail(_: Child) -> None:
        raise raised

    error, seen = await fate(fake_profile(), Hooks(warmup=(Do(action=fail),)))
    assert isinstance(error, StepFailed)
    assert error.reason == reason
    assert seen.one(ev.StepFailed).reason == reason


async def test_a_step_error_is_redacted() -> None:
    """A secret in a Step's own error does not reach the message."""
    key = Secret("sk-made-up-for-tests")

    def leak(_: Child) -> None:
        raise ValueError(f"the key was {key.reveal()}")

    error, _ = await fate(fake_profile(api_key=key, api_key_env="LLAMA_API_KEY"), Hooks(warmup=(Do(action=leak),)))
    assert "sk-made-up" not in str(error)
    assert "the key was ***" in str(error)


class Abort(BaseException):
    """Something that no handler of Exception sees."""


def abort(_: Child) -> None:
    raise Abort


async def test_a_before_stop_step_cannot_prevent_the_stop() -> None:
    """Whatever a `before_stop` Step raises, the child is stopped."""
    seen = Recorder()
    hooks = Hooks(before_stop=(Do(action=abort),), observers=(seen,))
    with anyio.fail_after(20), pytest.raises(BaseExceptionGroup):
        async with anyio.create_task_group() as tasks:
            await tasks.start(supervise, fake_profile(), hooks)
            tasks.cancel_scope.cancel()
    assert seen.one(ev.ChildExited).exit_code == 0


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_stray_cancellation_is_a_failed_step() -> None:
    """A Step that awaits a task which somebody cancelled has failed; nobody asked the supervision to stop."""

    async def stray() -> None:
        task = asyncio.ensure_future(asyncio.sleep(60))
        task.cancel()
        await task

    error, _ = await fate(fake_profile(), Hooks(warmup=(Do(action=lambda _: stray()),)))
    assert isinstance(error, StepFailed)
    assert "cancelled" in error.reason


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_second_native_cancellation_leaves_the_grace_period() -> None:
    """A host that cancels its asyncio task again during the stop does not cut the stop short."""
    seen = Recorder()
    profile = fake_profile("--slow-sigterm", "0.5", stop=Stop(grace_s=30))
    task = asyncio.ensure_future(supervise(profile, Hooks(observers=(seen,))))
    await until_async(lambda: bool(seen.of(ev.ChildReady)))
    task.cancel()
    await until_async(lambda: bool(seen.of(ev.Stopping)))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen.one(ev.ChildExited).exit_code == 0
    assert not seen.one(ev.TeardownFinished).escalated
    assert seen.names[-1] == "supervision.stopped"


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_native_cancellation_is_a_stop() -> None:
    """`Task.cancel` from plain asyncio stops the server like a cancel scope does, also in the middle of a Step."""
    seen = Recorder()
    hang = Do(action=lambda _: anyio.sleep_forever())
    task = asyncio.ensure_future(supervise(fake_profile(), Hooks(warmup=(hang,), observers=(seen,))))
    await until_async(lambda: bool(hang.calls))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen.names[-1] == "supervision.stopped"


async def test_a_log_parser_that_raises_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """A defect of the profile's parser is reported once; lines are kept as they are, and the child is drained."""
    seen = Recorder()

    def broken(_: str) -> Any:
        raise KeyError("level")

    async with anyio.create_task_group() as tasks:
        await tasks.start(supervise, fake_profile(logs=LogLimits(parse=broken)), Hooks(observers=(seen,)))
        tasks.cancel_scope.cancel()
    assert any("load_model" in line for line in seen.lines())
    assert len(caplog.records) == 1


async def test_a_cause_that_holds_a_secret_is_not_shown() -> None:
    """Tracebacks print causes: one that holds a secret is left out."""
    key = Secret("sk-made-up-for-tests")

    def leak(_: Child) -> None:
        raise ValueError(f"the key was {key.reveal()}")

    error, _ = await fate(fake_profile(api_key=key, api_key_env="LLAMA_API_KEY"), Hooks(warmup=(Do(action=leak),)))
    assert error.__cause__ is None
    assert "sk-made-up" not in "".join(traceback.format_exception(error))
