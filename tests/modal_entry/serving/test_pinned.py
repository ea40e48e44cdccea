"""What a deploy fixes: a deploy after a promotion, a rollback or a download differs, and containers use that alone."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from modal_proto import api_pb2 as pb

from fakes.modal_host import APP, KEY, Host, server_pid
from hooks.artifacts.marker import Marker
from hooks.sleep import GpuMemory
from modal_entry.rehearsal.container import Container, run
from modal_entry.rehearsal.control_plane import ControlPlane
from modal_entry.rehearsal.programs import Cli, deploy
from modal_entry.serving import Deployment, images
from supervisor.errors import ProfileError
from supervisor.steps import Step
from support import ROOT

SECRETS = {"entry-key": {"API_KEY"}, "huggingface-secret": {"HF_TOKEN"}}
SKIPPED = "Deployment skipped"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """Volumes with a promoted build b1 and with weights."""
    return Host.of_fake(tmp_path)


@pytest.fixture
def plane(host: Host) -> Iterator[ControlPlane]:
    """A plane that can read those volumes."""
    with ControlPlane(secrets=SECRETS, folders=host.folders) as plane:
        yield plane


def deployed(plane: ControlPlane) -> tuple[str, pb.Function]:
    """A deploy with Modal's CLI: what it said, and the server's definition."""
    cli = deploy(plane, str(APP), cwd=ROOT)
    assert cli.returncode == 0, cli.output
    return cli.output, plane.app("entry").functions["Entry"]


def pins(plane: ControlPlane, function: pb.Function) -> dict[str, str]:
    """The variables that fix build and weights."""
    return {k: v for k, v in plane.image_env(function.image_id).items() if k.startswith("WARMBOOT_")}


def test_a_deploy_differs_after_a_promotion_a_rollback_and_a_download(plane: ControlPlane, host: Host) -> None:
    """Without a change the deploy is skipped, as on Modal; whatever the volumes' new content, it is not."""
    first, before = deployed(plane)
    assert SKIPPED not in first
    again, same = deployed(plane)
    assert SKIPPED in again
    assert same == before

    host.build("b2")
    host.releases.promote("b2-sm89")
    after_promotion, promoted = deployed(plane)
    assert SKIPPED not in after_promotion
    assert promoted != before
    assert pins(plane, promoted)["WARMBOOT_BUILD"].startswith("b2-sm89@")

    host.releases.rollback()
    after_rollback, back = deployed(plane)
    assert SKIPPED not in after_rollback
    assert pins(plane, back)["WARMBOOT_BUILD"] == pins(plane, before)["WARMBOOT_BUILD"]
    assert back != before, "a snapshot of long ago may not fit the driver of today: a new one is made"

    host.releases.promote("b1-sm89")
    assert SKIPPED not in deployed(plane)[0], "a promotion of what is promoted asks for new snapshots"

    Marker.of(host.weights, ("model.gguf",), repo="local/model", revision="main", commit="c0ffee").save(host.weights)
    after_download, downloaded = deployed(plane)
    assert SKIPPED not in after_download
    assert pins(plane, downloaded)["WARMBOOT_WEIGHTS"].startswith("c0ffee@")
    assert plane.unanswered == []


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("releases/main/entry.json", ("no build was promoted in the environment 'main'", "::build_llama_server`")),
        ("gemma-3-270m/main/ARTIFACTS.json", ("the weights were not downloaded", "::download_model`")),
    ],
)
def test_a_deploy_before_the_pipeline_names_the_command(
    missing: str, words: tuple[str, ...], plane: ControlPlane, host: Host
) -> None:
    """Nothing is deployed, and the CLI names what is missing and the command to run, without a traceback."""
    for folder in host.folders.values():
        (folder / missing).unlink(missing_ok=True)
    cli = deploy(plane, str(APP), cwd=ROOT)
    assert cli.returncode == 1
    said = " ".join(cli.output.split())
    assert all(word in said for word in words), said
    assert f"modal run {APP}::" in said
    assert "Traceback" not in said
    assert not plane.apps


def test_the_pipeline_runs_before_anything_is_promoted(plane: ControlPlane, host: Host, tmp_path: Path) -> None:
    """`modal run` of the entry looks nothing up: it is what fills the volumes."""
    (host.home / "builds" / "releases" / "main" / "entry.json").unlink()
    with Cli(plane, "run", f"{APP}::smoke", "--url", "http://127.0.0.1:9", cwd=tmp_path) as cli:
        assert cli.wait(60) == 1
    assert "export API_KEY first" in cli.output
    assert plane.seen("VolumeGetFile2") == []


def test_staging_has_a_pointer_of_its_own_and_the_same_volumes(plane: ControlPlane, host: Host, tmp_path: Path) -> None:
    """What is promoted in staging is not in production, and both read the volumes of one environment."""
    host.build("b2")
    in_staging = {**host.env, "MODAL_ENVIRONMENT": "staging", "LLAMA_CPP_TAG": "b2"}  # as Modal, and the image, set it
    cli, _ = run(plane, "--env", "staging", f"{APP}::promote", cwd=ROOT, home=tmp_path, env=in_staging)
    assert cli.returncode == 0, cli.output
    cli = deploy(plane, "--env", "staging", str(APP), cwd=ROOT)
    assert cli.returncode == 0, cli.output
    assert pins(plane, plane.app("entry").functions["Entry"])["WARMBOOT_BUILD"].startswith("b2-sm89@")
    assert {request.environment_name for request in plane.seen("VolumeGetOrCreate")} == {"main"}
    _, production = deployed(plane)
    assert pins(plane, production)["WARMBOOT_BUILD"].startswith("b1-sm89@")


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Host:
    """What `serving` was deployed from; containers get copies."""
    return Host.of_fake(tmp_path_factory.mktemp("volumes"))


@pytest.fixture(scope="module")
def serving(volumes: Host) -> Iterator[ControlPlane]:
    """A plane to which the entry was deployed, with build b1."""
    with ControlPlane(secrets=SECRETS, folders=volumes.folders) as plane:
        deployed(plane)
        yield plane


@pytest.fixture
def copy(volumes: Host, tmp_path: Path) -> Host:
    """Volumes of the test's own, with what was deployed."""
    return volumes.copied(tmp_path / "copy")


def container(plane: ControlPlane, host: Host) -> Container:
    """A container of what was deployed: nothing but paths, port and key comes from here."""
    env = {name: value for name, value in host.env.items() if name not in ("WARMBOOT_BUILD", "WARMBOOT_WEIGHTS")}
    return Container(plane, "Entry", host.home, env=env)


def test_a_container_serves_what_was_deployed_whatever_the_pointer_says(serving: ControlPlane, copy: Host) -> None:
    """Modal makes new snapshots of an old deploy when it sees fit: they hold the build of that deploy."""
    copy.build("b2")
    copy.releases.promote("b2-sm89")
    with container(serving, copy) as running:
        running.checkpoint()
        running.restore()
        running.ready()
        (spawned,) = [line for line in running.lines if "child.spawned" in line]
        assert "/.warmboot/b1-sm89/llama-server" in spawned
        running.terminate()
        assert running.wait() == 0


@pytest.mark.parametrize("what", ["build", "weights"])
def test_a_container_refuses_what_was_not_deployed(what: str, serving: ControlPlane, copy: Host) -> None:
    """Another build, or other weights, at the place of the deployed ones: no server, and words with both hashes."""
    if what == "build":
        manifest = copy.home / "builds" / "b1-sm89" / "BUILD.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"built_at": "later"}))
    else:
        with (copy.weights / "model.gguf").open("ab") as file:
            file.write(b"\0" * 32)
        Marker.of(copy.weights, ("model.gguf",), repo="local/model", revision="main").save(copy.weights)
    with container(serving, copy) as running:
        failure = running.failure()
        running.wait()
    assert f"the {what} in " in failure.exception
    assert "not what was deployed" in failure.exception
    assert "Run `modal deploy` again" in failure.exception
    assert "child.spawned" not in running.output


def test_a_changed_key_is_served_after_a_cold_start(serving: ControlPlane, copy: Host) -> None:
    """A secret that was changed after the snapshot: the new key is accepted, the old one refused."""
    with container(serving, copy) as running:
        running.checkpoint()
        running.restore(api_key="sk-the-new-one")
        running.ready()
        assert "API_KEY is another one" in running.output
        assert copy.chat("sk-the-new-one").status_code == 200
        assert copy.chat(KEY).status_code == 401
        running.terminate()
        assert running.wait() == 0


def test_volumes_are_reloaded_before_a_cold_start_at_a_resume(serving: ControlPlane, copy: Host) -> None:
    """Files may be missing after a restore until the volume is reloaded; the start in place reads them all."""
    with container(serving, copy) as running:
        running.checkpoint()
        reloads = len(serving.seen("VolumeReload", running.task_id))
        os.kill(server_pid(running.lines), signal.SIGKILL)
        running.restore()
        running.ready()
        assert len(serving.seen("VolumeReload", running.task_id)) == reloads + 2
        running.terminate()
        assert running.wait() == 0


def test_modals_proxy_authentication_is_an_option_of_the_sheet() -> None:
    """By default the key alone guards, because plain OpenAI clients send none of Modal's headers."""
    assert images.server(sheet())["unauthenticated"] is True
    assert images.server(sheet(unauthenticated=False))["unauthenticated"] is False


@pytest.mark.parametrize(
    ("field", "value"), [("grace_s", 21.0), ("drain_s", 3601.0), ("gpu_use_gib", -1.0), ("gpu_memory", "magic")]
)
def test_a_sheet_beyond_modals_limits_is_refused(field: str, value: object) -> None:
    """Exit hooks get 30 s, requests in flight an hour; GPU memory is moved by the library or by the driver."""
    with pytest.raises(ProfileError, match=f"{field}={value!r}"):
        sheet(**{field: value})


def test_the_startup_timeout_covers_every_step() -> None:
    """Two starts, two seals, two resumes, each Step at its own limit, and the load: none can end in Modal's timeout.

    Where GPU memory is offloaded, each seal may fail at the last moment, and another start and seal replace it.
    """
    gemma = {"warmups": ("text", "thinking", "image"), "mmproj": "mmproj.gguf", "start_s": 600.0}
    driver, offload = sheet(**gemma, gpu_memory="driver"), sheet(**gemma)
    hooks = offload.hooks()
    until_sealed_s = 600 + limits_s(hooks.before_start, hooks.warmup, hooks.before_seal)
    resume_s = 60 + limits_s(hooks.after_resume)
    assert driver.startup_timeout_s >= 2 * (until_sealed_s + resume_s)
    more = GpuMemory(proof=hooks.after_resume).hooks()
    failed_s = until_sealed_s + limits_s(more.before_start, more.sleep, more.wake)
    assert offload.startup_timeout_s >= 2 * (failed_s + until_sealed_s + limits_s(more.wake) + resume_s)


def limits_s(*points: tuple[Step, ...]) -> float:
    """How long Steps may take in all."""
    return sum(step.deadline_s or 120.0 for point in points for step in point)


def sheet(**more: object) -> Deployment:
    """A sheet with what every one has."""
    fields: dict[str, object] = {
        "app": "a",
        "name": "a",
        "repo": "a/a",
        "revision": "main",
        "weights": "a.gguf",
        "llama_cpp_tag": "b1",
        "gpu": "L4",
        "gpu_use_gib": 1,
        "ctx_size": 2048,
        "slots": 2,
        "api_key_secret": "a",
    }
    return Deployment(**(fields | more))  # type: ignore[arg-type]


def test_the_tag_of_the_environment_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """LLAMA_CPP_TAG works in every entry; the build's folder names tag and architecture."""
    assert (sheet().tag, sheet().build_folder("b1")) == ("b1", "b1-sm89")
    monkeypatch.setenv("LLAMA_CPP_TAG", "b2")
    assert sheet(gpu="A100").tag == "b2"
    assert sheet(gpu="A100").build_folder("b2") == "b2-sm80"
