"""Modal's CLI and container entrypoint against the local control plane: what they say, and in which order."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from modal_entry.rehearsal.container import Container, run
from modal_entry.rehearsal.control_plane import ControlPlane
from modal_entry.rehearsal.programs import deploy
from support import DATA

KEY = {"API_KEY": "sesame"}


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """A plane to which the app has been deployed, from a directory that is not the app's."""
    with ControlPlane(secrets={"tiny-key": {"API_KEY"}}) as plane:
        cli = deploy(plane, str(DATA / "modal_app.py"), cwd=DATA.parent)
        assert cli.returncode == 0, cli.output
        yield plane


def test_deploy_is_recorded(plane: ControlPlane) -> None:
    """What the decorators say arrives: GPU, snapshots, port, timeouts, scaling, secret, volume."""
    app = plane.app("tiny")
    tiny = app.functions["Tiny"]
    assert app.published
    assert set(app.published.function_ids) == {"Tiny", "double", "fail"}
    assert tiny.is_server
    assert tiny.resources.gpu_config.gpu_type == "L40S"
    assert tiny.checkpointing_enabled
    assert dict(tiny.experimental_options) == {"enable_gpu_snapshot": "True"}
    http = tiny.http_config
    assert (http.port, http.startup_timeout, http.exit_grace_period, http.unauthenticated) == (8123, 120, 30, True)
    scaling = tiny.autoscaler_settings
    assert (scaling.min_containers, scaling.max_containers, scaling.scaledown_window) == (0, 3, 900)
    assert scaling.target_concurrency_float == 4
    assert [plane.secrets[i].deployment_name for i in tiny.secret_ids] == ["tiny-key"]
    assert [(plane.volumes[v.volume_id].deployment_name, v.mount_path) for v in tiny.volume_mounts] == [
        ("tiny-models", "/models")
    ]
    assert app.functions["double"].timeout_secs == 600
    assert plane.unanswered == []


def test_the_plane_can_be_saved(plane: ControlPlane) -> None:
    """It has no TCP socket: gVisor refuses a checkpoint while an event loop waits on one."""
    assert plane.url.startswith("unix:///")


def test_image_and_sources_are_recorded(plane: ControlPlane) -> None:
    """The image's commands in order, its environment, and the very files that travel into a container."""
    tiny = plane.app("tiny").functions["Tiny"]
    commands = plane.commands(tiny.image_id)
    assert commands[0] == "FROM debian:bookworm-slim"
    wanted = ["libgomp1", "anyio==4.16.0", "ENV OFFLINE=1", "RUN echo built"]
    places = [next(i for i, line in enumerate(commands) if text in line) for text in wanted]
    assert places == sorted(places)
    assert plane.image_env(tiny.image_id)["OFFLINE"] == "1"
    sources = plane.sources(tiny)
    assert sorted(sources) == ["/root/modal_app.py", "/root/modal_base.py"]
    assert sources["/root/modal_base.py"] == (DATA / "modal_base.py").read_bytes()


@pytest.mark.parametrize(
    ("existing", "message"),
    [
        ({}, "Secret 'tiny-key' not found in environment 'main'"),
        ({"tiny-key": {"OTHER"}}, "Secret 'tiny-key' is missing key(s): API_KEY"),
    ],
)
def test_missing_secret_fails_the_deploy(existing: dict[str, set[str]], message: str) -> None:
    """Without the secret, or without its key, nothing is deployed and the CLI names what is missing."""
    with ControlPlane(secrets=existing) as plane:
        cli = deploy(plane, "modal_app.py", cwd=DATA)
    assert cli.returncode == 1
    assert message in cli.output
    assert plane.app().published is None


def test_container_goes_through_its_whole_life(plane: ControlPlane, tmp_path: Path) -> None:
    """Start, snapshot, restore as another task, resume, registration, an answer over HTTP, SIGTERM, stop, exit 0."""
    with Container(plane, "Tiny", tmp_path, env=KEY) as container:
        container.checkpoint()
        port = int(container.line("port=").removeprefix("port="))
        assert "resume" not in container.output
        container.restore(task_id="ta-restored")
        container.line("resume ta-restored")
        container.ready()
        assert httpx.get(f"http://127.0.0.1:{port}", trust_env=False).text == "ta-restored"
        container.terminate()
        assert container.wait() == 0
    hooks = [line.split()[0] for line in container.lines if line.startswith(("start", "resume", "stop"))]
    assert hooks == ["start", "resume", "stop", "stopped"]
    assert "start hello key=sesame offline=1" in container.lines
    assert "still running after container exit" not in container.output
    assert plane.seen("TaskResult", container.task_id) == []
    committed = {request.volume_id for request in plane.seen("VolumeCommit", container.task_id)}
    assert committed == {mount.volume_id for mount in container.function.volume_mounts}


def test_container_without_a_snapshot_goes_straight_on(plane: ControlPlane, tmp_path: Path) -> None:
    """Where Modal takes no snapshot, the same container starts and resumes in one go."""
    with Container(plane, "Tiny", tmp_path, env=KEY, snapshot=False) as container:
        container.ready()
        container.terminate()
        assert container.wait() == 0
    assert plane.seen("ContainerCheckpoint", container.task_id) == []


def test_failing_hook_is_reported(plane: ControlPlane, tmp_path: Path) -> None:
    """A hook that raises ends the container before its snapshot; the report, not the exit code, says so."""
    with Container(plane, "Tiny", tmp_path, env={**KEY, "FAIL_AT": "start"}) as container:
        failure = container.failure()
        assert container.wait() == 0
    assert failure.exception == "ValueError('told to fail at start')"
    assert "in start" in failure.traceback
    assert plane.seen("ContainerCheckpoint", container.task_id) == []
    assert "stop" not in container.lines


def test_sigterm_before_registration_kills(plane: ControlPlane, tmp_path: Path) -> None:
    """While it waits for its restore, SIGTERM has its default effect: no exit hook runs."""
    with Container(plane, "Tiny", tmp_path, env=KEY) as container:
        container.checkpoint()
        container.line("port=")
        container.terminate()
        assert container.wait() == -signal.SIGTERM
    assert "stop" not in container.lines


def test_run_calls_a_function(plane: ControlPlane, tmp_path: Path) -> None:
    """`modal run` reaches a container with its arguments and ends well."""
    cli, (container,) = run(plane, f"{DATA / 'modal_app.py'}::double", "--x", "21", cwd=tmp_path, home=tmp_path)
    assert cli.returncode == 0, cli.output
    assert "doubled: 42" in container.lines


def test_run_shows_a_failure(plane: ControlPlane, tmp_path: Path) -> None:
    """A function that raises makes `modal run` fail with its error."""
    cli, _ = run(plane, f"{DATA / 'modal_app.py'}::fail", cwd=tmp_path, home=tmp_path)
    assert cli.returncode == 1
    assert "told to fail" in cli.output
