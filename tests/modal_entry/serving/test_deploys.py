"""The entries as Modal's own CLI deploys them, to a local control plane."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from fakes.modal_host import SECRETS, filled
from hooks.sleep.offload.build import sources
from modal_entry import gemma as gemma_entry
from modal_entry import qwen3 as qwen3_entry
from modal_entry.rehearsal.control_plane import ControlPlane
from modal_entry.rehearsal.programs import deploy
from support import ROOT

ENTRIES = ROOT / "modal_entry"
GEMMA = gemma_entry.SHEET


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A plane that took a deploy of the Gemma entry, made from the repository's root."""
    with ControlPlane(secrets=SECRETS, folders=filled(tmp_path_factory.mktemp("volumes"), GEMMA)) as plane:
        cli = deploy(plane, "modal_entry/gemma.py", cwd=ROOT)
        assert cli.returncode == 0, cli.output
        yield plane


def test_gemma_is_deployed_as_its_sheet_says(gemma: ControlPlane) -> None:
    """GPU, snapshots, port, access, limits, scaling, secret and volumes reach Modal."""
    app = gemma.app("gemma4")
    server = app.functions["Gemma4"]
    assert app.published
    assert set(app.published.function_ids) == {
        *("Gemma4", "build_llama_server", "download_model", "inspect_volumes", "promote", "rollback")
    }
    assert server.resources.gpu_config.gpu_type == "L40S"
    assert server.checkpointing_enabled
    assert dict(server.experimental_options) == {"enable_gpu_snapshot": "True"}
    http = server.http_config
    assert (http.port, http.unauthenticated) == (8000, True)
    assert (http.startup_timeout, http.exit_grace_period) == (GEMMA.startup_timeout_s, 120)
    assert (server.resources.memory_mb, server.resources.milli_cpu) == (33 * 1024, 4000)
    scaling = server.autoscaler_settings
    assert (scaling.min_containers, scaling.max_containers, scaling.scaledown_window) == (0, 3, 900)
    assert scaling.target_concurrency_float == 4
    assert [gemma.secrets[i].deployment_name for i in server.secret_ids] == ["gemma4-api-key"]
    assert {(gemma.volumes[v.volume_id].deployment_name, v.mount_path) for v in server.volume_mounts} == {
        ("llama-models", "/models"),
        ("llama-cpp-builds", "/llama-build"),
    }
    assert {v.environment_name for v in gemma.volumes.values()} == {"main"}
    assert gemma.unanswered == []


def test_images_and_sources(gemma: ControlPlane) -> None:
    """A runtime image without a toolchain, a builder with one, offline serving; our packages travel as sources."""
    functions = gemma.app("gemma4").functions
    runtime = "\n".join(gemma.commands(functions["Gemma4"].image_id))
    assert "-runtime-" in runtime
    assert "libgomp1" in runtime
    assert "ENTRYPOINT []" in runtime
    assert "cmake" not in runtime
    assert gemma.image_env(functions["Gemma4"].image_id)["HF_HUB_OFFLINE"] == "1"
    builder = "\n".join(gemma.commands(functions["build_llama_server"].image_id))
    assert "-devel-" in builder
    assert "cmake" in builder
    assert gemma.image_env(functions["download_model"].image_id)["HF_XET_HIGH_PERFORMANCE"] == "1"
    for name, function in functions.items():
        files = set(gemma.sources(function))
        wanted = ("supervisor/lifecycle/run.py", "hooks/warmup/steps.py", "modal_entry/serving/server.py")
        assert {f"/root/{path}" for path in wanted} <= files
        assert not [path for path in files if "/rehearsal/" in path]
        kinds = {Path(path).suffix for path in files}
        if name == "build_llama_server":  # which compiles our library
            assert kinds == {".py", ".c", ".h"}
            assert {f"/root/hooks/sleep/offload/{path.name}" for path in sources()} <= files
        else:
            assert kinds == {".py"}
    assert "HF_TOKEN" not in runtime


def test_image_pins_are_those_that_are_tested() -> None:
    """The versions that the images install are those of constraints.txt, under which this suite passes."""
    from modal_entry.serving import images

    tested = set((ROOT / "constraints.txt").read_text().replace("_", "-").lower().split())
    assert {pin.replace("[hf_xet]", "") for pin in images._PIPELINE} <= tested


@pytest.mark.parametrize("entry", [gemma_entry, qwen3_entry], ids=["gemma", "qwen3"])
def test_entries_deploy_from_elsewhere(entry: ModuleType, tmp_path: Path) -> None:
    """A deploy from another directory finds the packages and succeeds."""
    with ControlPlane(secrets=SECRETS, folders=filled(tmp_path / "volumes", entry.SHEET)) as plane:
        cli = deploy(plane, str(entry.__file__), cwd=tmp_path)
        assert cli.returncode == 0, cli.output
        (name,) = [name for name, function in plane.app().functions.items() if function.is_server]
    assert name.lower() == entry.SHEET.app


def test_a_deploy_without_the_key_secret_fails(tmp_path: Path) -> None:
    """Without the secret that holds the key nothing is deployed, and the CLI names it."""
    secrets = {"huggingface-secret": {"HF_TOKEN"}}
    with ControlPlane(secrets=secrets, folders=filled(tmp_path, GEMMA)) as plane:
        cli = deploy(plane, "modal_entry/gemma.py", cwd=ROOT)
        assert cli.returncode == 1
        assert "gemma4-api-key" in cli.output
        assert plane.app().published is None


@pytest.mark.parametrize("entry", ["gemma.py", "qwen3.py"])
def test_entries_are_short(entry: str) -> None:
    """An entry reads like a spec sheet: at most 80 lines."""
    assert len((ENTRIES / entry).read_text().splitlines()) <= 80
