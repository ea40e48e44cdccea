"""The Modal entries, deployed by Modal's CLI and run by Modal's container entrypoint, against a local control plane."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fakes.modal_host import APP, KEY, SECRETS, Host, server_pid
from modal_entry.rehearsal.container import run
from modal_entry.rehearsal.control_plane import ControlPlane
from modal_entry.rehearsal.programs import Cli, deploy
from support import ROOT, alive, until
from tools.serve import running_fake

# Container


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A plane that took a deploy of the test's entry."""
    folders = Host.of_fake(tmp_path_factory.mktemp("volumes")).folders
    with ControlPlane(secrets=SECRETS, folders=folders) as plane:
        cli = deploy(plane, str(APP), cwd=ROOT)
        assert cli.returncode == 0, cli.output
        yield plane


@pytest.fixture
def host(tmp_path: Path) -> Callable[..., Host]:
    """Makes a host whose binary is the fake server with faults."""
    return lambda *faults: Host.of_fake(tmp_path, *faults)


def test_the_whole_life_of_a_container(plane: ControlPlane, host: Callable[..., Host]) -> None:
    """Start, snapshot, restore, resume, a chat with the key and none without, SIGTERM, exit 0, nothing left."""
    here = host()
    with here.container(plane) as container:
        container.checkpoint()
        container.line("child.sealed")
        pid = server_pid(container.lines)
        assert "child.resumed" not in container.output
        container.line("GPU memory is left to the platform: the build b1-sm89 has no libwarmboot_gpu.so")
        container.restore(task_id="ta-restored")
        container.ready()
        container.line("child.resumed")
        assert here.chat().json()["choices"][0]["message"]["content"] == "OK"
        assert here.chat("wrong").status_code == 401
        container.terminate()
        assert container.wait() == 0
    assert not alive(pid)
    assert "supervision.stopped" in container.output
    assert "still running after container exit" not in container.output
    assert KEY not in container.output
    (spawned,) = [line for line in container.lines if "child.spawned" in line]
    assert spawned.count("--load-mode") + spawned.count("--no-mmap") == 1
    assert plane.seen("TaskResult", container.task_id) == []


@pytest.mark.engine
@pytest.mark.timeout(120)
def test_a_real_engine_in_a_container(plane: ControlPlane, tmp_path: Path) -> None:
    """The same on real llama.cpp with a real model."""
    from supervisor.engines import embedded

    embedded.assemble(embedded.model_path())
    engine = [sys.executable, "-m", "supervisor.engines.embedded"]
    # One thread: on a machine that is busy, threads that wait for each other take most of the time.
    here = Host(tmp_path, engine, "--threads", "1", model=embedded.model_path())
    with here.container(plane) as container:
        container.checkpoint(60)
        container.restore()
        container.ready()
        answer = here.chat().json()
        assert answer["model"] == "gemma-3-270m"
        assert answer["choices"][0]["message"]["content"]
        assert here.chat("wrong").status_code == 401
        container.terminate()
        assert container.wait() == 0


@pytest.mark.parametrize("key", ["", "   "])
def test_no_key_no_server(plane: ControlPlane, host: Callable[..., Host], key: str) -> None:
    """A missing or blank key refuses the start before any server runs: an endpoint is never opened by accident."""
    with host().container(plane, API_KEY=key) as container:
        failure = container.failure()
        container.wait()
    assert "API_KEY" in failure.exception
    assert "non-blank" in failure.exception
    assert "child.spawned" not in container.output


def test_a_model_that_is_half_there(plane: ControlPlane, host: Callable[..., Host]) -> None:
    """Weights without the marker that the download writes last are refused, with the command that mends it."""
    here = host()
    (here.weights / "ARTIFACTS.json").unlink()
    with here.container(plane) as container:
        failure = container.failure()
        container.wait()
    assert "half of it" in failure.exception
    assert "not what was deployed" in failure.exception
    assert "child.spawned" not in container.output


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        (("--answer", "empty"), "content is blank"),
        (("--die-while-loading",), "exited with code 1 during loading"),
        (("--open",), "auth"),
    ],
)
def test_what_is_not_fit_is_never_sealed(
    plane: ControlPlane, host: Callable[..., Host], faults: tuple[str, ...], words: str
) -> None:
    """An empty answer, a death while loading, an open server: no snapshot, the reason reported, nothing left."""
    with host(*faults).container(plane) as container:
        failure = container.failure()
        container.wait()
    assert words in failure.exception
    assert plane.seen("ContainerCheckpoint", container.task_id) == []
    assert not alive(server_pid(container.lines))


def test_a_server_that_dies_sealed_is_replaced(plane: ControlPlane, host: Callable[..., Host]) -> None:
    """A server that did not survive the snapshot is cold-started at the resume, before the port is registered."""
    here = host()
    with here.container(plane) as container:
        container.checkpoint()
        first = server_pid(container.lines)
        os.kill(first, signal.SIGKILL)
        container.restore()
        container.ready()
        assert server_pid(container.lines) != first
        assert here.chat().status_code == 200
        container.terminate()
        assert container.wait() == 0
    assert "child.restarting" in container.output


def test_no_port_before_the_answer_is_verified(plane: ControlPlane, host: Callable[..., Host], tmp_path: Path) -> None:
    """Modal registers the port, and so sends requests, only once the golden answer came back."""
    gate = tmp_path / "gate"
    gate.touch()
    here = host("--gate", str(gate))
    with here.container(plane) as container:
        container.checkpoint()
        gate.unlink()
        container.restore()
        until(here.busy)
        assert plane.seen("ContainerServerLifecycleReady", container.task_id) == []
        assert "child.resumed" not in container.output
        gate.touch()
        container.ready()
        container.line("child.resumed")
        container.terminate()
        assert container.wait() == 0


def test_another_answer_after_the_restore_is_never_served(
    plane: ControlPlane, host: Callable[..., Host], tmp_path: Path
) -> None:
    """A restored server that answers otherwise is replaced by a cold start before the port is registered."""
    drift = tmp_path / "drift"
    here = host("--answer-drift-file", str(drift))
    with here.container(plane) as container:
        container.checkpoint()
        first = server_pid(container.lines)
        drift.touch()
        container.restore()
        container.ready()
        assert server_pid(container.lines) != first
        container.terminate()
        assert container.wait() == 0
    failed, restarting = (
        container.output.index("the answer is not the recorded one"),
        container.output.index("restarting"),
    )
    assert failed < restarting


def test_a_server_that_cannot_be_healed_fails_the_container(
    plane: ControlPlane, host: Callable[..., Host], tmp_path: Path
) -> None:
    """When the cold start in place fails too, Modal is told, and the port is never registered."""
    block = tmp_path / "block"
    here = host("--bind-fails-once", str(block))
    block.touch()
    with here.container(plane) as container:
        container.checkpoint()
        block.unlink()
        os.kill(server_pid(container.lines), signal.SIGKILL)
        container.restore()
        assert "DiedBeforeReady" in container.failure().exception
        container.wait()
    assert plane.seen("ContainerServerLifecycleReady", container.task_id) == []


def test_a_crash_while_serving_ends_the_container(plane: ControlPlane, host: Callable[..., Host]) -> None:
    """A server that crashes takes the container along with a non-zero code, so that the platform replaces it."""
    with host().container(plane) as container:
        container.checkpoint()
        container.restore()
        container.ready()
        os.kill(server_pid(container.lines), signal.SIGSEGV)
        killed = time.monotonic()
        assert container.wait() == 1
        assert time.monotonic() - killed < 10
    assert "SIGSEGV" in container.output


def test_sigterm_during_the_load(plane: ControlPlane, host: Callable[..., Host]) -> None:
    """Modal's SIGTERM in the middle of an enter hook kills the container at once; the server does not survive it."""
    with host("--never-ready").container(plane) as container:
        container.line("child.spawned")
        pid = server_pid(container.lines)
        container.terminate()
        assert container.wait() == -signal.SIGTERM
        until(lambda: not alive(pid))


def test_a_slow_stop_is_waited_for(plane: ControlPlane, host: Callable[..., Host]) -> None:
    """A server that takes its time within the grace period stops by itself."""
    with host("--slow-sigterm", "0.5").container(plane) as container:
        container.checkpoint()
        container.restore()
        container.ready()
        container.terminate()
        assert container.wait() == 0
    assert "escalated=False" in container.output


def test_logs_flow_while_modal_waits_for_the_restore(plane: ControlPlane, host: Callable[..., Host]) -> None:
    """The entrypoint's loop is parked until the restore; a flooding server is drained all the same, to its end."""
    here = host("--flood-lines-per-s", "0", "--flood-bytes-total", "20000000")
    with here.container(plane) as container:
        container.checkpoint()
        container.line("FLOOD DONE", 40)
        container.restore()
        container.ready()
        container.terminate()
        assert container.wait() == 0


# Pipeline


def test_verify_promote_and_rollback(plane: ControlPlane, host: Callable[..., Host], tmp_path: Path) -> None:
    """`modal run` looks at the volumes, switches the served build and back, and fails on any doubt."""
    here = host()
    builds = tmp_path / "builds"

    def call(name: str, *args: str) -> tuple[int | None, str]:
        cli, containers = run(plane, f"{APP}::{name}", *args, cwd=ROOT, home=tmp_path, env=here.env)
        return cli.returncode, "\n".join([cli.output, *(c.output for c in containers)])

    code, said = call("verify_model")
    assert code == 0, said
    assert "everything is as it should be" in said

    code, said = call("promote", "--tag", "b2")
    assert code == 1
    assert "b2" in said
    here.build("b2")
    code, said = call("promote", "--tag", "b2")
    assert code == 0, said
    assert here.served() == "b2-sm89"
    code, said = call("rollback")
    assert code == 0, said
    assert here.served() == "b1-sm89"

    (builds / "b1-sm89" / "llama-server").write_text("#!/bin/sh\nexit 1\n")
    with (here.weights / "model.gguf").open("r+b") as weights:
        weights.truncate(1000)
    code, said = call("verify_model")
    assert code == 1
    assert "truncated" in said
    assert "not fit to serve" in said
    assert "Traceback" not in said


def test_smoke_from_the_entry(plane: ControlPlane, tmp_path: Path) -> None:
    """`modal run ...::smoke` checks an endpoint with the key of the local environment, and fails when a check does."""
    for faults, status in ((), 0), (("--answer", "empty"), 4):
        flags = ("--alias", "gemma-3-270m", "--metrics", "--parallel", "2", *faults)
        with running_fake(*flags, server_key=KEY) as child:
            args = ("run", f"{APP}::smoke", "--url", child.url)
            with Cli(plane, *args, cwd=tmp_path, env={"API_KEY": KEY}) as cli:
                assert cli.wait(60) == status, cli.output
            assert KEY not in cli.output
            assert "503 until a container is up" in cli.output, "it says what it waits for"


def test_a_server_without_snapshots_is_refused(tmp_path: Path) -> None:
    """An entry that seals, deployed without memory snapshots, fails in words before anything is created."""
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        APP.read_text().replace(
            "**images.server(SHEET)", '**(images.server(SHEET) | {"enable_memory_snapshot": False})'
        )
    )
    with ControlPlane(secrets=SECRETS, folders=Host.of_fake(tmp_path / "volumes").folders) as plane:
        cli = deploy(plane, str(wrong), cwd=ROOT)
    assert cli.returncode == 1
    assert "enable_memory_snapshot=True" in cli.output


def test_importing_an_entry_is_cheap() -> None:
    """An entry imports Modal and little else: no HTTP client, no supervisor, no hub, no rehearsal."""
    heavy = ("httpx", "anyio", "supervisor", "huggingface_hub", "structlog", "modal_entry.rehearsal")
    code = f"import sys, modal_entry.gemma; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
