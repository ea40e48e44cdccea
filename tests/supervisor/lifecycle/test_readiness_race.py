"""The wait for READY on real processes: a race that whatever comes first wins."""

from __future__ import annotations

import os
import socket
import sys
import time
from contextlib import closing
from pathlib import Path

import anyio
import httpx
import pytest

from hooks.warmup.steps import Text
from supervisor import (
    Child,
    Health,
    Hooks,
    Restart,
    Secret,
    State,
    Timeouts,
    supervise,
)
from supervisor import events as ev
from supervisor.errors import (
    DiedBeforeReady,
    LoadStalled,
    PortTaken,
    ReadinessTimeout,
    SpawnError,
    SupervisorError,
    WrongModel,
)
from supervisor.lifecycle.handle import Supervised
from support import FAKE, TESTS, Do, Recorder, alive, fake_profile, fate, free_port, is_in, until_async

pytestmark = pytest.mark.anyio


QUICK = Restart(policy="on-failure", backoff_s=0.01, jitter=0.0)


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
