"""A container whose server has GPU memory: put aside for the snapshot and brought back, or left to the driver."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from fakes.cuda.build import Built, build_once
from fakes.modal_host import APP, KEY, SECRETS, Host, server_pid
from modal_entry.qwen3 import SHEET
from modal_entry.rehearsal.control_plane import ControlPlane
from modal_entry.rehearsal.programs import deploy
from modal_entry.serving import Server
from modal_entry.serving.deployment import Way
from supervisor import Hooks, Profile
from support import ROOT, alive

LEFT = "GPU memory is left to the platform: "


@pytest.fixture(scope="module")
def cuda(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A CUDA driver without a GPU, and the library."""
    return build_once(tmp_path_factory)


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """A plane that took a deploy of the test's entry."""
    folders = Host.of_fake(tmp_path_factory.mktemp("volumes")).folders
    with ControlPlane(secrets=SECRETS, folders=folders) as plane:
        cli = deploy(plane, str(APP), cwd=ROOT)
        assert cli.returncode == 0, cli.output
        yield plane


def test_gpu_memory_is_away_during_the_snapshot(plane: ControlPlane, cuda: Built, tmp_path: Path) -> None:
    """It leaves after the self-check and comes back before the first answer; the contract finds nothing about it."""
    here = Host.with_gpu(tmp_path, cuda)
    with here.container(plane) as container:
        container.checkpoint()
        container.line("child.sealed")
        pid = server_pid(container.lines)
        assert LEFT not in container.output
        assert "contract: " not in container.output
        said = container.line("gpu.offloaded")
        assert "bytes=33554432 stored_bytes=16777216" in said
        assert "self-check" in container.output[: container.output.index("gpu.offloaded")]
        container.restore()
        container.ready()
        container.line("child.resumed")
        assert container.output.index("gpu.reloaded") < container.output.index("golden text replay")
        assert here.chat().json()["choices"][0]["message"]["content"] == "OK"
        container.terminate()
        assert container.wait() == 0
    assert not alive(pid)


def test_memory_that_was_damaged_meanwhile_is_never_served(plane: ControlPlane, cuda: Built, tmp_path: Path) -> None:
    """One flipped bit of the memory that was put aside fails the resume, by its address; a cold start heals it."""
    here = Host.with_gpu(tmp_path, cuda)
    with here.container(plane) as container:
        container.checkpoint()
        first = server_pid(container.lines)
        assert damage(here) == 200
        container.restore()
        container.ready()
        assert server_pid(container.lines) != first
        assert here.chat().json()["choices"][0]["message"]["content"] == "OK"
        container.terminate()
        assert container.wait() == 0
    failed = container.line("step.failed")
    assert "came back damaged (2097152 bytes at 0x" in failed
    assert container.output.index(failed) < container.output.index("child.restarting")


def damage(host: Host) -> int:
    """Has the fake server flip a bit of what was put aside; the status of its answer."""
    url, key = f"http://127.0.0.1:{host.port}/damage", {"Authorization": f"Bearer {KEY}"}
    return httpx.post(url, headers=key, trust_env=False).status_code


@pytest.mark.parametrize(
    ("flags", "fault", "why"),
    [
        ((), {"FLIP_IN": "1"}, "the answer is not the recorded one"),
        ((), {"CREATE": "1+"}, "exited with code 1 during loading"),
        (("--signal-after-requests", "4"), {}, "the child was killed by SIGKILL"),
    ],
    ids=["wrong-answer", "no-memory-for-it", "death"],
)
def test_a_server_that_fails_its_self_check_is_replaced_before_the_seal(
    plane: ControlPlane, cuda: Built, tmp_path: Path, flags: tuple[str, ...], fault: dict[str, str], why: str
) -> None:
    """Wrong once its memory went and came back in place, or dead with it: one without the library is sealed."""
    here = Host.with_gpu(tmp_path, cuda, *flags, faults=fault)
    with here.container(plane) as container:
        container.checkpoint()
        container.line("child.sealed")
        first, second = [line for line in container.lines if "child.spawned" in line]
        assert not alive(server_pid([first]))
        assert "libwarmboot_gpu.so" not in (Path("/proc") / str(server_pid([second])) / "maps").read_text()
        notice = container.line(LEFT)
        assert why in notice
        assert "A cold start without the library takes its place" in notice
        assert "gpu.offloaded" not in container.output
        assert container.output.count("child.sealed") == 1


def test_a_library_that_cannot_be_loaded_is_a_notice(plane: ControlPlane, cuda: Built, tmp_path: Path) -> None:
    """The server starts without it and is sealed."""
    with Host.with_gpu(tmp_path, cuda, library=b"no library").container(plane) as container:
        container.checkpoint()
        container.line("child.sealed")
        assert container.output.count("child.spawned") == 1
        assert "the library cannot be loaded" in container.line(LEFT)


@pytest.mark.parametrize(("way", "offloads"), [("offload", True), ("driver", False)])
def test_a_sheet_may_leave_gpu_memory_to_the_driver(way: Way, offloads: bool, cuda: Built) -> None:
    """By `gpu_memory="driver"` nothing is preloaded, though the build has the library; no notice says so."""
    server = Server()
    server.deployment = replace(SHEET, gpu_memory=way)
    found = server._offloading(cuda.folder, Profile(name="x", command=("true", "{port}")), Hooks())
    assert (found is not None) is offloads
    if found is not None:
        assert found[0].env["LD_PRELOAD"] == str(cuda.library)
        assert [step.name for step in found[1].wake] == ["gpu memory reload"]
