"""The snapshot contract as a Step: a sound server is sealed, a breach refuses the seal, settings, and its errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hooks.contract import ContractBroken, ContractUnseen, Finding, SnapshotContract, tree
from hooks.warmup.steps import Text
from supervisor import Daemon, Hooks, Secret, State
from supervisor.engines import embedded
from supervisor.errors import ProfileError, StepFailed
from supervisor.linux import processes
from support import ROOT, is_in
from tools.contract import Findings, profile, refused, sealed, serving
from tools.serve import child_at

pytestmark = pytest.mark.anyio


async def test_a_sound_server_is_sealed() -> None:
    """A server that holds nothing but its listener, its log pipes and its program is sealed, and nothing is found."""
    async with serving(profile("--model", __file__, "--read-model", weights=(Path(__file__),))) as (server, seen):
        await sealed(server, seen)


@pytest.mark.engine
def test_mapped_weights_of_a_real_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp with mmap is refused, and the error shows the line of the weights; without mmap it is sealed."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    seen = Findings()
    step = SnapshotContract(on_findings=seen)
    steps = Hooks(before_start=(embedded.AssembleModel(),), warmup=(Text(),), before_seal=(step,))
    with Daemon(embedded.profile(slots=1, threads=1, load="mmap"), steps) as daemon:
        with pytest.raises(StepFailed) as caught:
            daemon.seal()
        assert is_in(daemon, State.READY)
        lines = Path(f"/proc/{daemon.supervised.pid}/maps").read_text().splitlines()
    finding = next(finding for finding in seen if finding.check == "weights-mapped")
    assert finding.pid == daemon.supervised.pid
    assert finding.line.endswith(str(embedded.model_path()))
    assert lines[int(finding.where.rpartition(" ")[2]) - 1] == finding.line
    assert finding.where in str(caught.value)
    assert 'LlamaServer(load="no-mmap")' in str(caught.value)
    assert {finding.check for finding in seen if finding.severity == "error"} == {"weights-mapped"}
    with Daemon(embedded.profile(slots=1, threads=1, load="no-mmap"), steps) as daemon:
        daemon.seal()
        assert is_in(daemon, State.SEALED)
    assert seen == []


async def test_no_proc_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be looked at nothing is passed: no /proc, no child, a process of which /proc tells nothing."""
    child = child_at(1, pid=None)
    with pytest.raises(ContractUnseen, match="no child yet"):
        await SnapshotContract()(child)
    with pytest.raises(ContractUnseen, match="no process of pid 1073741824"):
        await SnapshotContract()(replace(child, pid=1 << 30))
    async with serving(profile()) as (server, _):
        with monkeypatch.context() as patched:
            patched.setattr(processes, "AVAILABLE", False)
            with pytest.raises(StepFailed, match="read from Linux's /proc, and there is none here"):
                await server.seal()
        for name in ("maps", "descriptors"):
            with monkeypatch.context() as patched:
                patched.setattr(tree, name, lambda _: None)
                with pytest.raises(StepFailed, match="may not be read: run the supervisor as"):
                    await server.seal()
        await server.seal()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"waive": ("weights-maped",)}, r"contract\.waive='weights-maped' is not valid: it must be of weights-mapped,"),
        ({"waive": "connection"}, r"contract\.waive='connection' is not valid: it must be a tuple"),
        ({"remounted": (Path("models"),)}, r"contract\.remounted=.* absolute paths"),
        ({"remounted": ("/models",)}, r"contract\.remounted=.* absolute paths"),
        ({"allowed": ("",)}, r"contract\.allowed='' .* shell patterns"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    """A wrong setting is told at construction."""
    with pytest.raises(ProfileError, match=message):
        SnapshotContract(**settings)


async def test_a_waived_check_warns(tmp_path: Path) -> None:
    """What is waived is found all the same, as a warning, and does not refuse the seal."""
    path = tmp_path / "log"
    path.touch()
    async with serving(profile("--hold-open", str(path), "--unlink-open"), waive=("stale-file",)) as (server, seen):
        await server.seal()
    (finding,) = seen
    assert (finding.check, finding.severity) == ("stale-file", "warning")


async def test_findings_are_redacted(tmp_path: Path) -> None:
    """A key that stands in a path is in no finding."""
    path = tmp_path / "made-up-key-1234"
    path.write_text("x")
    what = profile("--hold-open", str(path), "--unlink-open", api_key=Secret("made-up-key-1234"))
    async with serving(what) as (server, seen):
        finding = await refused(server, seen, "stale-file")
    assert "made-up" not in repr(finding)
    assert "***" in finding.what and "***" in finding.line


def test_the_error_has_a_line_for_each_finding() -> None:
    """One line a finding, whatever stands in a path; warnings say that they are."""
    finding = Finding(check="stale-file", pid=7, what="w", where="/proc/7/fd/1", line="/a\nb", fix="f")
    text = str(ContractBroken((finding, replace(finding, severity="warning"))))
    assert text.splitlines() == [
        "the snapshot contract is broken:",
        "    stale-file: pid 7 w (/proc/7/fd/1: /a b); f",
        "    warning, stale-file: pid 7 w (/proc/7/fd/1: /a b); f",
    ]
