"""The lifecycle on real processes: readiness as a race, exits, restarts, seal and resume, stop."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from hooks.warmup.steps import Ping, Text
from supervisor import (
    Child,
    Health,
    Hooks,
    Liveness,
    LogLimits,
    Profile,
    Restart,
    Secret,
    State,
    Stop,
    Timeouts,
    supervise,
)
from supervisor import events as ev
from supervisor.errors import (
    ChildCrashed,
    ChildUnresponsive,
    DiedBeforeReady,
    IllegalState,
    LoadStalled,
    PortTaken,
    ReadinessTimeout,
    SpawnError,
    StepFailed,
    SupervisorError,
    WrongModel,
)
from supervisor.lifecycle.handle import Supervised
from supervisor.readiness.probe import NotUp, out_of_resources, probe
from support import FAKE, TESTS, Recorder, alive, fake_profile, free_port, is_in, until_async

pytestmark = pytest.mark.anyio

QUICK = Restart(policy="on-failure", backoff_s=0.01, jitter=0.0)


@dataclass(kw_only=True)
class Do:
    """A Step made of a function."""

    action: Callable[[Child], Any]
    name: str = "do"
    deadline_s: float | None = None
    calls: list[Child] = field(default_factory=list)

    async def __call__(self, child: Child) -> None:
        self.calls.append(child)
        result = self.action(child)
        if result is not None:
            await result


def fail(_: Child) -> None:
    raise ValueError("on purpose")


async def fate(profile: Profile, hooks: Hooks | None = None) -> tuple[SupervisorError, Recorder]:
    """Supervises until it fails by itself; returns the error."""
    seen = Recorder()
    hooks = hooks or Hooks()
    with pytest.raises(SupervisorError) as caught:
        await supervise(profile, Hooks(**{**_as_dict(hooks), "observers": (seen,)}))
    return caught.value, seen


def _as_dict(hooks: Hooks) -> dict[str, Any]:
    return {name: getattr(hooks, name) for name in Hooks.__slots__}


# Readiness


async def test_start_returns_once_ready() -> None:
    """`tg.start` gives a handle at READY, not before; cancelling stops the server; every event is in order."""
    seen = Recorder()
    async with anyio.create_task_group() as tasks:
        server: Supervised = await tasks.start(supervise, fake_profile("--load-s", "0.2"), Hooks(observers=(seen,)))
        assert is_in(server, State.READY)
        assert server.pid
        assert httpx.get(f"{server.url}/health", trust_env=False).status_code == 200
        tasks.cancel_scope.cancel()
    assert is_in(server, State.STOPPED)
    assert not alive(server.pid)
    assert seen.names == [
        "child.starting",
        "child.spawned",
        "child.up",
        "child.ready",
        "child.stopping",
        "child.exited",
        "teardown.finished",
        "supervision.stopped",
    ]
    assert seen.one(ev.ChildExited).exit_code == 0
    assert seen.one(ev.ChildReady).waited_s >= 0.2
    assert not seen.one(ev.TeardownFinished).escalated


@pytest.mark.parametrize(
    ("flags", "code", "by"),
    [
        (("--die-while-loading",), 1, None),
        (("--exit-while-loading", "0"), 0, None),
        (("--exit-while-loading", "139"), 139, None),
        (("--signal-while-loading", "SIGILL"), None, "SIGILL"),
        (("--signal-while-loading", "SIGKILL"), None, "SIGKILL"),
    ],
)
async def test_death_while_loading(flags: tuple[str, ...], code: int | None, by: str | None, tmp_path: Path) -> None:
    """A child that ends while loading is reported at once, with its code or signal apart and its last lines."""
    stamp = tmp_path / "stamp"
    profile = fake_profile(*flags, "--stamp", str(stamp), timeouts=Timeouts(start_s=3000, stall_s=3000))
    error, seen = await fate(profile)
    noticed_s = time.monotonic() - float(stamp.read_text().split("died ")[1].split()[0])
    assert isinstance(error, DiedBeforeReady)
    assert (error.exit_code, error.signal, error.during) == (code, by, "loading")
    assert any("load_model" in line for line in error.tail)
    assert error.cli_status == 3
    assert noticed_s < 5  # the deadline is 3000 s away
    assert (f"code {code}" if by is None else by) in str(error)
    assert seen.one(ev.ChildExited).signal == by


async def test_death_during_warmup() -> None:
    """A Step that fails because the child died is reported as the child's death, not as a bad answer."""
    error, _ = await fate(
        fake_profile("--signal-after-requests", "1", "--signal", "SIGSEGV"), Hooks(warmup=(Text(), Text()))
    )
    assert isinstance(error, DiedBeforeReady)
    assert (error.signal, error.during) == ("SIGSEGV", "warmup")


async def test_deadline() -> None:
    """A server that never gets ready ends with what its last probe said."""
    error, _ = await fate(fake_profile("--never-ready", timeouts=Timeouts(start_s=0.5)))
    assert isinstance(error, ReadinessTimeout)
    assert "Loading model" in error.detail
    assert error.probes > 3
    assert 0.5 <= error.waited_s < 10


async def test_a_hanging_server_meets_the_deadline() -> None:
    """A server that accepts and never answers is probed with a limit of its own, and is not mistaken for a slow one."""
    profile = fake_profile("--hang", timeouts=Timeouts(start_s=1.0, probe_s=0.1))
    error, _ = await fate(profile)
    assert isinstance(error, ReadinessTimeout)
    assert "no answer within 0.1 s" in error.detail
    assert error.probes > 2


async def test_a_health_path_that_is_not_there() -> None:
    """A server that answers 404 gets no more time by a longer limit: the path is what to look at."""
    profile = fake_profile(health=Health(path="/nope"), timeouts=Timeouts(start_s=0.5))
    error, _ = await fate(profile)
    assert isinstance(error, ReadinessTimeout)
    assert "HTTP 404" in error.detail
    assert "--health PATH" in error.summary
    assert "Raise" not in error.summary


async def test_stall(tmp_path: Path) -> None:
    """A load that reads, computes and logs nothing any more is given up long before the deadline."""
    weights = tmp_path / "weights.gguf"
    weights.write_bytes(b"\0" * 8_000_000)
    profile = fake_profile(
        "--model", str(weights), "--read-model", "--load-s", "0.4", "--stall-at", "0.5",
        weights=(weights,), timeouts=Timeouts(start_s=3000, stall_s=1.0),
    )  # fmt: skip
    error, seen = await fate(profile)
    assert isinstance(error, LoadStalled)
    assert error.total_bytes == 8_000_000
    assert 1_000_000 < error.bytes_read < 8_000_000
    assert seen.of(ev.LoadProgress)
    assert "stalled" in str(error)


async def test_progress_of_the_load(tmp_path: Path) -> None:
    """While the weights are read, events tell bytes, total, rate and what is left."""
    weights = tmp_path / "weights.gguf"
    weights.write_bytes(b"\0" * 20_000_000)
    seen = Recorder()
    profile = fake_profile("--model", str(weights), "--read-model", "--load-s", "1.2", weights=(weights,))
    async with anyio.create_task_group() as tasks:
        await tasks.start(supervise, profile, Hooks(observers=(seen,)))
        tasks.cancel_scope.cancel()
    steps = seen.of(ev.LoadProgress)
    assert len(steps) >= 2
    assert all(step.total_bytes == 20_000_000 and step.bytes_per_s > 0 for step in steps)
    done = [step.bytes for step in steps]
    assert done == sorted(done)
    assert steps[0].eta_s is not None


async def test_waiting_is_reported_every_n_failures() -> None:
    """`log_every` failed probes make one event, with what the loading body said."""
    seen = Recorder()
    profile = fake_profile("--load-s", "0.5", health=Health(log_every=3, poll_max_s=0.02))
    async with anyio.create_task_group() as tasks:
        await tasks.start(supervise, profile, Hooks(observers=(seen,)))
        tasks.cancel_scope.cancel()
    waits = seen.of(ev.HealthWaiting)
    assert [wait.failures for wait in waits] == [3 * (i + 1) for i in range(len(waits))]
    assert any("Loading model" in wait.detail for wait in waits)


async def test_the_ready_line_beats_a_slow_poll() -> None:
    """With a poll of a minute, the engine's ready line alone makes the probe happen."""
    health = Health(poll_min_s=60, poll_max_s=60, ready_pattern="server is listening on")
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            await tasks.start(supervise, fake_profile("--load-s", "0.3", health=health))
            tasks.cancel_scope.cancel()


async def test_the_ready_line_is_no_proof() -> None:
    """A ready line while health is red does not make a server ready."""
    script = "print('server is listening on nothing', flush=True); import time; time.sleep(60)"
    profile = fake_profile(command=(sys.executable, "-c", script, "{port}"), timeouts=Timeouts(start_s=0.6))
    error, _ = await fate(profile)
    assert isinstance(error, ReadinessTimeout)
    assert "refused" in error.detail


async def test_a_taken_port_is_seen_before_the_spawn() -> None:
    """Somebody else's server on the port is named by pid; our command is not even started."""
    with closing(socket.create_server(("127.0.0.1", 0))) as other:
        port = other.getsockname()[1]
        error, seen = await fate(fake_profile(port=port))
    assert isinstance(error, PortTaken)
    assert (error.port, error.pid) == (port, os.getpid())
    assert not seen.of(ev.ChildSpawned)


async def test_a_port_lost_after_the_spawn() -> None:
    """A foreign server that takes the port while ours loads is green, but its listener gives it away."""
    seen = Recorder()
    squatters: list[anyio.abc.Process] = []

    async def squat(child: Child) -> None:
        # `before_start` runs ahead of the port check, so the squatter waits for our child's first log line.
        assert child.pid is None

    profile = fake_profile("--wrong-port", "--load-s", "0.1", port=free_port(), timeouts=Timeouts(start_s=10))
    argv = [sys.executable, "-I", "-S", str(FAKE), "--port", str(profile.port)]

    async def intrude() -> None:
        await until_async(lambda: bool(seen.of(ev.ChildSpawned)))
        squatters.append(await anyio.open_process(argv))

    with pytest.raises(PortTaken) as caught:
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(intrude)
                try:
                    await supervise(profile, Hooks(before_start=(Do(action=squat),), observers=(seen,)))
                except SupervisorError as error:
                    failure = error
            raise failure
        finally:
            for squatter in squatters:
                squatter.kill()
                await squatter.aclose()
    assert caught.value.pid == squatters[0].pid
    assert "fake_server" in (caught.value.command or "")


async def test_a_lost_bind_race_takes_another_port(tmp_path: Path) -> None:
    """With port 0, a child that cannot bind is started again on another port, without touching the restart budget."""
    seen = Recorder()
    async with anyio.create_task_group() as tasks:
        profile = fake_profile("--bind-fails-once", str(tmp_path / "failed"))
        server: Supervised = await tasks.start(supervise, profile, Hooks(observers=(seen,)))
        assert is_in(server, State.READY)
        tasks.cancel_scope.cancel()
    first, second = seen.of(ev.ChildSpawned)
    assert first.argv != second.argv
    assert any("trying" in notice.detail for notice in seen.of(ev.Notice))
    assert not seen.of(ev.ChildRestarting)


async def test_a_fixed_port_is_not_exchanged() -> None:
    """With a port of the user's choice, a failed bind is the end."""
    error, _ = await fate(fake_profile("--bind-fails", port=free_port()))
    assert isinstance(error, DiedBeforeReady)
    assert any("bind" in line for line in error.tail)


async def test_a_server_on_the_wrong_port_is_told() -> None:
    """A child that listens elsewhere never gets ready; the error says where it listens."""
    error, _ = await fate(fake_profile("--wrong-port", timeouts=Timeouts(start_s=2.5)))
    assert isinstance(error, ReadinessTimeout)
    assert "listens on port" in error.detail


@pytest.mark.parametrize("flags", [("--serve-model-id", "other"), ("--router",)])
async def test_the_wrong_model_is_not_ready(flags: tuple[str, ...]) -> None:
    """A green server without the model that was asked for is refused at once."""
    error, _ = await fate(fake_profile(*flags, health=Health(model_id="wanted")))
    assert isinstance(error, WrongModel)
    assert error.wanted == "wanted"
    assert "wanted" in str(error)


async def test_the_right_model_behind_a_key() -> None:
    """Identity is asked with the key, and an alias is a name."""
    key = Secret("sk-made-up-for-tests")
    profile = fake_profile(
        "--alias", "wanted", health=Health(model_id="wanted"), api_key=key, api_key_env="LLAMA_API_KEY"
    )
    async with anyio.create_task_group() as tasks:
        server: Supervised = await tasks.start(supervise, profile, Hooks(warmup=(Text(),)))
        assert httpx.get(f"{server.url}/v1/models", trust_env=False).status_code == 401
        tasks.cancel_scope.cancel()


async def test_an_ambient_proxy_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxy variables of the host do not divert loopback probes."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with anyio.create_task_group() as tasks:
        await tasks.start(supervise, fake_profile(), Hooks(warmup=(Text(),)))
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (("/no/such/program", "{port}"), "no such program"),
        ((str(TESTS / "support.py"), "{port}"), "not executable"),
    ],
)
async def test_a_command_that_cannot_start(command: tuple[str, ...], words: str) -> None:
    """What the system refuses to start is a SpawnError that says why; it is not tried again."""
    error, seen = await fate(fake_profile(command=command, restart=QUICK))
    assert isinstance(error, SpawnError)
    assert words in str(error)
    assert seen.names == ["child.starting", "supervision.failed"]


async def test_a_missing_working_directory(tmp_path: Path) -> None:
    """A working directory that is not there is named, rather than the program."""
    error, _ = await fate(fake_profile(cwd=tmp_path / "gone"))
    assert isinstance(error, SpawnError)
    assert "working directory" in str(error)


# Steps


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


# After READY


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


# Stop


async def test_a_server_that_ignores_term_is_killed() -> None:
    """After the grace period the group is killed, and the report says so."""
    seen = Recorder()
    async with anyio.create_task_group() as tasks:
        profile = fake_profile("--ignore-sigterm", stop=Stop(grace_s=0.2, drain_s=1))
        await tasks.start(supervise, profile, Hooks(observers=(seen,)))
        tasks.cancel_scope.cancel()
    result = seen.one(ev.TeardownFinished)
    assert result.escalated
    assert result.took_s >= 0.2
    assert seen.one(ev.ChildExited).signal == "SIGKILL"


async def test_a_slow_stop_is_waited_for() -> None:
    """A server that needs a moment gets it, within the grace period."""
    seen = Recorder()
    async with anyio.create_task_group() as tasks:
        await tasks.start(supervise, fake_profile("--slow-sigterm", "0.3"), Hooks(observers=(seen,)))
        tasks.cancel_scope.cancel()
    assert not seen.one(ev.TeardownFinished).escalated
    assert seen.one(ev.ChildExited).exit_code == 0


async def test_a_stopped_server_gets_its_grace_too() -> None:
    """A server that SIGSTOP has stopped cannot take TERM: it is woken, and exits by itself."""
    seen = Recorder()
    async with anyio.create_task_group() as tasks:
        server: Supervised = await tasks.start(supervise, fake_profile(stop=Stop(grace_s=20)), Hooks(observers=(seen,)))
        assert server.pid
        os.kill(server.pid, signal.SIGSTOP)
        tasks.cancel_scope.cancel()
    assert not seen.one(ev.TeardownFinished).escalated
    assert seen.one(ev.ChildExited).exit_code == 0


async def test_a_grandchild_with_the_pipe_delays_nothing_beyond_the_drain(tmp_path: Path) -> None:
    """A grandchild that holds the pipes and ignores TERM is killed with the group when `drain_s` is over."""
    seen = Recorder()
    pid_file = tmp_path / "pid"
    profile = fake_profile("--grandchild", "--grandchild-pid-file", str(pid_file), stop=Stop(grace_s=30, drain_s=0.2))
    with anyio.fail_after(15):
        async with anyio.create_task_group() as tasks:
            await tasks.start(supervise, profile, Hooks(observers=(seen,)))
            grandchild = int(pid_file.read_text())
            assert alive(grandchild)
            tasks.cancel_scope.cancel()
    assert 0.2 <= seen.one(ev.TeardownFinished).took_s < 10
    await until_async(lambda: not alive(grandchild))


async def test_a_wrapper_is_stopped_with_its_server() -> None:
    """TERM reaches the server behind a shell wrapper, which may finish what it does."""
    inner = f"{sys.executable} -I -S {FAKE} --port {{port}} --slow-sigterm 0.2"
    seen = Recorder()
    profile = fake_profile(command=("/bin/sh", "-c", f"{inner} & wait"))
    async with anyio.create_task_group() as tasks:
        server: Supervised = await tasks.start(supervise, profile, Hooks(observers=(seen,)))
        tasks.cancel_scope.cancel()
    assert seen.one(ev.TeardownFinished).drained
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health", trust_env=False)


@pytest.mark.parametrize("tail", ["& wait", "> /dev/null 2>&1; true"], ids=["holds the pipes", "holds nothing"])
async def test_the_grace_is_the_servers_not_its_wrappers(tail: str) -> None:
    """A server behind a shell that dies of TERM gets the whole grace period, not only the drain's."""
    inner = f"{sys.executable} -I -S {FAKE} --port {{port}} --slow-sigterm 0.5"
    seen = Recorder()
    profile = fake_profile(command=("/bin/sh", "-c", f"{inner} {tail}"), stop=Stop(grace_s=20, drain_s=0.1))
    async with anyio.create_task_group() as tasks:
        await tasks.start(supervise, profile, Hooks(observers=(seen,)))
        tasks.cancel_scope.cancel()
    result = seen.one(ev.TeardownFinished)
    assert not result.escalated
    assert result.took_s >= 0.5


async def test_a_server_in_a_group_of_its_own_is_stopped() -> None:
    """A wrapper with job control puts the server into another process group; it does not survive the stop."""
    inner = f"{sys.executable} -I -S {FAKE} --port {{port}}"
    profile = fake_profile(command=("/bin/bash", "-c", f"set -m; {inner} & wait"))
    async with anyio.create_task_group() as tasks:
        server: Supervised = await tasks.start(supervise, profile)
        tasks.cancel_scope.cancel()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health", trust_env=False)


async def test_the_exit_of_a_leader_takes_its_group_along(tmp_path: Path) -> None:
    """When the child dies, a grandchild that holds port or pipes does not survive it, and does not delay the report."""
    pid_file = tmp_path / "pid"
    flags = ("--grandchild", "--grandchild-pid-file", str(pid_file), "--die-while-loading")
    error, seen = await fate(fake_profile(*flags, stop=Stop(grace_s=30, drain_s=30)))
    assert isinstance(error, DiedBeforeReady)
    assert seen.one(ev.TeardownFinished).took_s < 10
    assert not alive(int(pid_file.read_text()))


# Seal and resume


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
    assert not seen.of(ev.ChildUnanswering)
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


# Watchdog


async def test_a_hang_is_noticed_by_health() -> None:
    """Health that stops answering is a hang after `misses` checks; the process is killed and the error says so."""
    profile = fake_profile(
        "--hang-after-ready", "0.1",
        timeouts=Timeouts(probe_s=0.1), liveness=Liveness(period_s=0.05, misses=2), stop=Stop(grace_s=0.5),
    )  # fmt: skip
    error, seen = await fate(profile)
    assert isinstance(error, ChildUnresponsive)
    assert error.misses == 2
    assert "no answer within 0.1 s" in error.detail
    assert seen.one(ev.ChildUnanswering).misses == 2


async def test_a_hang_behind_green_health_is_noticed_by_inference() -> None:
    """Completions that hang while health stays green are found by the liveness Step."""
    profile = fake_profile(
        "--hang-completions-after", "1", "--metrics",
        liveness=Liveness(
            period_s=0.05, misses=2, inference_every_s=0.1,
            counters_path="/metrics", counters_pattern=r"(?m)^llamacpp:tokens_predicted_total .*$",
        ),
        stop=Stop(grace_s=0.5),
    )  # fmt: skip
    error, _ = await fate(profile, Hooks(warmup=(Text(),), liveness=(Ping(deadline_s=0.2),)))
    assert isinstance(error, ChildUnresponsive)
    assert "ping" in error.detail


async def test_inference_is_skipped_while_traffic_moves_the_counters() -> None:
    """Real traffic that moves the server's counters spares it the artificial request."""
    ping = Do(action=lambda _: None, name="ping")
    profile = fake_profile(
        "--metrics",
        liveness=Liveness(
            period_s=0.02, inference_every_s=0.15,
            counters_path="/metrics", counters_pattern=r"(?m)^llamacpp:tokens_predicted_total .*$",
        ),
    )  # fmt: skip
    async with anyio.create_task_group() as tasks:
        server: Supervised = await tasks.start(supervise, profile, Hooks(liveness=(ping,)))
        async with server.child.client() as client:
            for _ in range(40):
                await client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hi"}]})
                await anyio.sleep(0.02)
        busy = len(ping.calls)
        await until_async(lambda: len(ping.calls) > busy)  # idle: now the Step runs
        tasks.cancel_scope.cancel()
    assert busy == 0


@pytest.mark.parametrize("hungry", ["the probe", "the inference", "the look at the port"])
async def test_what_we_lack_is_no_miss(hungry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While we are out of descriptors or threads, checks that fail for it are told once and count for nothing."""
    seen, shortages = Recorder(), 0
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    def starve() -> None:
        used = os.dup(0)
        os.close(used)
        resource.setrlimit(resource.RLIMIT_NOFILE, (used, limits[1]))

    async def sometimes(client: httpx.AsyncClient, child: Child) -> NotUp | None:
        nonlocal shortages
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        if hungry == "the probe":
            shortages += 1
            starve()
        return await probe(client, child)

    async def no_thread(_: Child) -> NotUp | None:
        nonlocal shortages
        shortages += 1
        return out_of_resources(RuntimeError("can't start new thread"))

    async def hungry_step(child: Child) -> None:
        nonlocal shortages
        shortages += 1
        starve()
        await Ping()(child)

    monkeypatch.setattr("supervisor.readiness.watchdog.probe", sometimes)
    if hungry == "the look at the port":
        monkeypatch.setattr("supervisor.readiness.watchdog.foreign_owner", no_thread)
        monkeypatch.setattr("supervisor.readiness.watchdog._OWNER_EVERY", 1)
    liveness = Liveness(period_s=0.01, misses=1, inference_every_s=0.01)
    hooks = Hooks(liveness=(Do(action=hungry_step),) if hungry == "the inference" else (), observers=(seen,))
    try:
        async with anyio.create_task_group() as tasks:
            server: Supervised = await tasks.start(supervise, fake_profile(liveness=liveness), hooks)
            await until_async(lambda: shortages >= 4 or not is_in(server, State.READY))
            assert is_in(server, State.READY)
            tasks.cancel_scope.cancel()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert seen.one(ev.Notice).detail.startswith("the watchdog is blind: out of resources here: ")
    assert not seen.one(ev.TeardownFinished).escalated


async def test_the_watchdog_waits_for_the_resume() -> None:
    """Armed `resume`: health that fails between READY and the seal is not its business; after the resume it is."""
    liveness = Liveness(armed="resume", period_s=0.02, misses=1)
    profile = fake_profile("--health-fails-after", "1.0", liveness=liveness, stop=Stop(grace_s=0.5))
    async with anyio.create_task_group() as tasks:
        server: Supervised = await tasks.start(supervise, profile)
        await until_async(lambda: httpx.get(f"{server.url}/health", trust_env=False).status_code == 500)
        await anyio.sleep(0.2)  # ten periods
        assert is_in(server, State.READY)
        tasks.cancel_scope.cancel()
    with pytest.raises(ChildUnresponsive):
        try:
            async with anyio.create_task_group() as tasks:
                server = await tasks.start(supervise, profile)
                await server.seal()
                await server.resume()
        except ExceptionGroup as group:
            raise group.exceptions[0] from None


# Logs


async def test_logs_of_a_flood_do_not_block_the_child() -> None:
    """50 MB written as fast as it can are drained to the end; what was not kept is counted."""
    seen = Recorder()
    profile = fake_profile("--flood-lines-per-s", "0", "--flood-bytes-total", "50000000")
    async with anyio.create_task_group() as tasks:
        await tasks.start(supervise, profile, Hooks(observers=(seen,)))
        await until_async(lambda: "FLOOD DONE" in seen.lines())
        tasks.cancel_scope.cancel()
    kept = sum(line.startswith("flood line") for line in seen.lines()) * 80  # they are padded
    dropped = sum(drop.bytes for drop in seen.of(ev.LogDropped))
    assert kept + dropped == pytest.approx(50_000_000, rel=0.001)


async def test_a_secret_never_reaches_an_event() -> None:
    """Secrets that the child logs, also cut in two writes, are masked in lines, argv and errors."""
    secret = Secret("very-secret-value-123")
    seen = Recorder()
    profile = fake_profile(
        "--echo-secret", secret.reveal(), "--echo-secret-split", secret.reveal(), "--exit-after-requests", "1",
        env={"PLANTED": secret},
    )  # fmt: skip
    with pytest.raises(SupervisorError) as caught:
        await supervise(profile, Hooks(warmup=(Text(), Text()), observers=(seen,)))
    assert "very-secret" not in repr(seen.events) + str(caught.value) + repr(caught.value)
    assert sum("***" in line for line in seen.lines()) == 2


async def test_a_hundred_cycles_leak_nothing() -> None:
    """After many start and stop cycles the process holds the descriptors that it held before."""
    profile = fake_profile()

    async def cycle() -> None:
        async with anyio.create_task_group() as tasks:
            await tasks.start(supervise, profile)
            tasks.cancel_scope.cancel()

    await cycle()
    before = len(os.listdir("/dev/fd"))
    for _ in range(100):
        await cycle()
    assert len(os.listdir("/dev/fd")) == before
