"""Downloading, with the real huggingface-hub client against a local hub that fails on demand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fakes.gguf_files import header, padded, pair, tensor, text, write_gguf
from fakes.hub_server import COMMIT, REPO, Hub, serving
from hooks.artifacts.inventory import Artifact, take_inventory
from hooks.artifacts.marker import MARKER, Marker
from modal_entry.pipeline.commands import host_lock
from support import FAKE

HERE = FAKE.parent
MODEL, README = "tiny.gguf", "sub/README.md"
FILES: tuple[dict[str, Any], ...] = ({"path": MODEL}, {"path": README, "kind": "file"})
TOKEN = "hf_made_up_for_tests"


@pytest.fixture
def model(tmp_path: Path) -> bytes:
    """A small model that is whole."""
    return write_gguf(tmp_path / "source.gguf").read_bytes()


@pytest.fixture
def content(model: bytes) -> dict[str, bytes]:
    """What the hub has."""
    return {MODEL: model, README: b"# Tiny\n"}


@dataclass
class Outcome:
    """What `download` did in its process."""

    said: dict[str, Any]
    log: str

    @property
    def error(self) -> str | None:
        return self.said.get("error")

    @property
    def message(self) -> str:
        return str(self.said.get("message"))

    def logged(self, event: str) -> int:
        """How many lines bear an event's name."""
        return self.log.count(f"{event} ")


def run(hub: Hub | None, root: Path, **order: Any) -> Outcome:
    """One download into `root`."""
    order = {"repo": REPO, "revision": "main", "files": FILES, "root": str(root), **order}
    home = root.parent / "home"
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(home), "NO_COLOR": "1"}
    env |= {"HF_ENDPOINT": hub.url if hub else "http://127.0.0.1:9", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, str(HERE / "hub_client.py")],
        input=json.dumps(order),
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    log, _, said = done.stdout.rpartition("\n")
    return Outcome(said=json.loads(said), log=log + done.stderr)


def whole(root: Path) -> bool:
    """Whether the folder holds everything, by hash."""
    files = [Artifact(**({"kind": "gguf"} | fields)) for fields in FILES]
    return not take_inventory(root, files, hashes=True, repo=REPO, revision="main").problems


def leftovers(root: Path) -> list[Path]:
    """Half files."""
    return list(root.rglob("*.incomplete"))


def test_a_download_is_verified_marked_and_committed(tmp_path: Path, content: dict[str, bytes]) -> None:
    """Files arrive whole, the marker names the commit, and is there before the one commit of the volume."""
    root = tmp_path / "models"
    with serving(content, small=frozenset({README})) as hub:
        done = run(hub, root)
    assert (done.error, done.said["fetched"], done.said["kept"]) == (None, [MODEL, README], [])
    assert (done.said["markers_at_commit"], done.said["waits"], done.said["commit"]) == ([True], [], COMMIT)
    assert whole(root)
    marker = Marker.load(root)
    assert marker is not None
    assert (marker.repo, marker.revision, marker.commit) == (REPO, "main", COMMIT)
    assert done.said["xet"] == "1"
    assert done.logged("download.verified") == 2


def test_a_second_run_asks_nobody(tmp_path: Path, content: dict[str, bytes]) -> None:
    """With a marker and the right sizes nothing is downloaded, nothing committed, no request made, and it says so."""
    root = tmp_path / "models"
    with serving(content) as hub:
        run(hub, root)
    again = run(None, root)
    assert (again.error, again.said["fetched"], again.said["kept"]) == (None, [], [MODEL, README])
    assert again.said["markers_at_commit"] == []
    assert again.logged("download.nothing_to_do") == 1
    assert run(None, root, revision=COMMIT).logged("download.nothing_to_do") == 1  # what `main` was then


def test_503s_then_success(tmp_path: Path, content: dict[str, bytes]) -> None:
    """Two failures of the listing and two of a file are waited out, 30 then 60 s, with a log line each."""
    root = tmp_path / "models"
    with serving(content, unavailable={"api": 2, "content": 2}) as hub:
        done = run(hub, root)
    assert (done.error, done.said["waits"]) == (None, [30.0, 60.0, 30.0, 60.0])
    assert (done.logged("download.attempt_failed"), done.logged("download.gave_up")) == (4, 0)
    assert "503" in done.log
    assert whole(root)


def test_three_failures_are_the_end(tmp_path: Path, content: dict[str, bytes]) -> None:
    """The third failure is raised as it came; no marker, no commit, no half file is left, and a later run succeeds."""
    root = tmp_path / "models"
    with serving(content, unavailable={"content": 3}) as hub:
        done = run(hub, root)
        assert (done.error, done.said["waits"]) == ("HfHubHTTPError", [30.0, 60.0])
        assert "503" in done.message
        assert (done.logged("download.attempt_failed"), done.logged("download.gave_up")) == (2, 1)
        assert (done.said["markers_at_commit"], (root / MARKER).exists(), leftovers(root)) == ([], False, [])
        assert run(hub, root).error is None
    assert whole(root)


def test_a_connection_cut_in_the_middle_is_resumed(tmp_path: Path, content: dict[str, bytes]) -> None:
    """The rest is asked for with a range, within the same attempt, and the whole has the right hash."""
    root = tmp_path / "models"
    mib = 1 << 20
    large = tensor("large", (3 * mib,), 0, 0)
    content[MODEL] = padded(header(pair("general.name", 8, text("Large")), tensors=(large,)), 12 * mib)
    with serving(content, cut_at={MODEL: 11 * mib}) as hub:
        done = run(hub, root)
        # The client writes in pieces of 10 MiB, and resumes behind the last one.
        assert [request.range for request in hub.of("GET", f"/content/{MODEL}")] == [None, f"bytes={10 * mib}-"]
    assert (done.error, done.said["waits"]) == (None, [])
    assert whole(root)


def test_a_short_body_is_never_taken_for_the_file(tmp_path: Path, content: dict[str, bytes]) -> None:
    """A body that is complete in itself, but shorter than the hub's size, fails three times and leaves nothing."""
    root = tmp_path / "models"
    with serving(content, served={MODEL: content[MODEL][:6000]}) as hub:
        done = run(hub, root)
    assert (done.error, done.said["waits"]) == ("OSError", [30.0, 60.0])
    assert f"should be of size {len(content[MODEL])} but has size 6000" in done.message
    assert (leftovers(root), (root / MODEL).exists(), (root / MARKER).exists()) == ([], False, False)


def test_a_model_that_was_published_truncated_is_named_so(tmp_path: Path, content: dict[str, bytes]) -> None:
    """The right hash of a truncated model is still a truncated model: named, at once, without a second attempt."""
    root = tmp_path / "models"
    content[MODEL] = content[MODEL][:-400]
    with serving(content) as hub:
        done = run(hub, root)
        assert len(hub.of("GET", f"/content/{MODEL}")) == 1
    assert (done.error, done.said["waits"]) == ("DownloadError", [])
    assert "damaged at its source: tiny.gguf: truncated: the tensor table needs" in done.message
    assert not (root / MARKER).exists()


def test_a_wrong_hash_is_refused(tmp_path: Path, content: dict[str, bytes]) -> None:
    """A flipped bit in the weights, at the right size: three attempts, then both hashes in the error; nothing stays."""
    root = tmp_path / "models"
    damaged = bytearray(content[MODEL])
    damaged[-200] ^= 1
    with serving(content, served={MODEL: bytes(damaged)}) as hub:
        done = run(hub, root)
        assert len(hub.of("GET", f"/content/{MODEL}")) == 3
        assert (done.error, done.said["waits"]) == ("ArtifactError", [30.0, 60.0])
        assert "tiny.gguf: hash differs: " in done.message
        assert hub.etag(MODEL) in done.message
        assert ((root / MODEL).exists(), (root / MARKER).exists()) == (False, False)


def test_a_wrong_copy_is_replaced(tmp_path: Path, content: dict[str, bytes]) -> None:
    """A file of the right name and size, but the wrong hash, is not taken for the model."""
    root = tmp_path / "models"
    root.mkdir()
    (root / MODEL).write_bytes(content[MODEL][:-1] + b"\xff")
    with serving(content) as hub:
        done = run(hub, root)
    assert (done.error, done.logged("download.replaced")) == (None, 1)
    assert whole(root)


def test_a_disk_too_small_is_told_before_the_download(tmp_path: Path, content: dict[str, bytes]) -> None:
    """A petabyte is refused with both numbers, before any content is asked for, and what was there stays."""
    root = tmp_path / "models"
    root.mkdir()
    (root / README).parent.mkdir()
    (root / README).write_text("old")
    with serving(content, listed_sizes={MODEL: 10**15}) as hub:
        done = run(hub, root)
        assert not hub.of("GET", "/content/")
    assert (done.error, done.said["waits"]) == ("DownloadError", [])
    assert "disk full: 100000000000000" in done.message
    assert (root / README).read_text() == "old"


def test_a_disk_that_fills_up_is_told(tmp_path: Path, content: dict[str, bytes]) -> None:
    """A write that the system refuses ends the download at once, with the file's name; nothing half stays."""
    root = tmp_path / "models"
    with serving(content) as hub:
        done = run(hub, root, file_limit=4096)
    assert (done.error, done.said["waits"]) == ("DownloadError", [])
    assert f"disk full: while {MODEL} was written" in done.message
    assert (leftovers(root), (root / MARKER).exists()) == ([], False)


@pytest.mark.root  # to mount a small file system
def test_a_really_full_disk_is_told(tmp_path: Path, model: bytes) -> None:
    """On a file system that another file fills, the free space is compared, and the error says how much is lacking."""
    root = tmp_path / "models"
    root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(root)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this machine does not let root mount")
    try:
        (root / "other").write_bytes(bytes(61440))
        with serving({MODEL: model, README: b"x"}) as hub:
            done = run(hub, root)
        assert (done.error, leftovers(root)) == ("DownloadError", [])
        assert f"disk full: {len(model) + 1} bytes are needed" in done.message
    finally:
        subprocess.run(["umount", str(root)], check=True)


def test_a_half_written_earlier_run_is_finished(tmp_path: Path, content: dict[str, bytes]) -> None:
    """A whole file is kept, a half one replaced, and the dead weight of a killed run removed."""
    root = tmp_path / "models"
    half = root / ".cache/huggingface/download/abc.def.12345678.incomplete"
    half.parent.mkdir(parents=True)
    half.write_bytes(bytes(100_000))
    (root / MODEL).write_bytes(content[MODEL])
    (root / README).parent.mkdir()
    (root / README).write_bytes(b"#")
    with serving(content) as hub:
        done = run(hub, root)
        assert not hub.of("GET", f"/content/{MODEL}")
    assert (done.error, done.said["kept"], done.said["fetched"]) == (None, [MODEL], [README])
    assert (leftovers(root), done.logged("download.replaced")) == ([], 2)
    assert whole(root)


def test_a_damaged_folder_loses_its_marker_until_it_is_mended(tmp_path: Path, content: dict[str, bytes]) -> None:
    """A file that shrank after the marker was written is fetched anew; if that fails, no marker vouches for it."""
    root = tmp_path / "models"
    with serving(content) as hub:
        run(hub, root)
        os.truncate(root / MODEL, 100)
        hub.unavailable["content"] = 3
        assert run(hub, root).error == "HfHubHTTPError"
        assert not (root / MARKER).exists()
        done = run(hub, root)
    assert (done.said["fetched"], done.said["kept"]) == ([MODEL], [README])
    assert whole(root)


def test_wrong_names_are_not_tried_again(tmp_path: Path, content: dict[str, bytes]) -> None:
    """A file or a revision that does not exist fails at once, and says what there is instead."""
    root = tmp_path / "models"
    with serving(content) as hub:
        lost = run(hub, root, files=[{"path": "other.gguf"}])
        assert (lost.error, lost.said["waits"]) == ("DownloadError", [])
        assert "not in the repository: other.gguf at revision 'main'. There: tiny.gguf" in lost.message
        gone = run(hub, root, revision="gone")
        assert (gone.error, gone.said["waits"]) == ("RevisionNotFoundError", [])


def test_a_promise_that_the_repository_breaks(tmp_path: Path, content: dict[str, bytes]) -> None:
    """Another hash, or a size out of range, than the profile's is told before a byte is fetched."""
    root = tmp_path / "models"
    with serving(content) as hub:
        for fields in ({"sha256": "0" * 64}, {"size_bytes": 17}, {"min_bytes": 10**9}):
            done = run(hub, root, files=[{"path": MODEL, **fields}])
            assert (done.error, done.said["waits"]) == ("DownloadError", [])
            assert "not as expected: tiny.gguf has" in done.message
        assert not hub.of("GET", "/content/")


def test_the_token_is_sent_and_never_printed(tmp_path: Path, content: dict[str, bytes]) -> None:
    """A gated repository opens with the token and refuses without, at once; no output and no error holds it."""
    root = tmp_path / "models"
    with serving(content, token=TOKEN) as hub:
        refused = run(hub, root)
        assert (refused.error, refused.said["waits"]) == ("GatedRepoError", [])
        done = run(hub, root, token=TOKEN)
        assert done.error is None
        assert {request.token for request in hub.of("GET", "/content/")} == {None}  # another host
        hub.refusal = 403
        wrong = run(hub, tmp_path / "other", token="hf_wrong")
    assert (wrong.error, wrong.said["waits"]) == ("HfHubHTTPError", [])
    assert TOKEN not in done.log + json.dumps(done.said) + "".join(p.read_text() for p in root.rglob("*.json"))
    assert "hf_wrong" not in wrong.log + wrong.message


def test_two_runs_in_one_folder(tmp_path: Path, content: dict[str, bytes]) -> None:
    """The second is refused, because each would take the other's half files for leftovers."""
    root = tmp_path / "models"
    root.mkdir()
    with host_lock(root, "download"), serving(content) as hub:
        done = run(hub, root)
    assert (done.error, "busy" in done.message) == ("DownloadError", True)


def test_progress_without_a_terminal_is_log_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The progress bar without a terminal does what the client asks of one over Xet, and logs bytes of how many."""
    from huggingface_hub.utils._xet_progress_reporting import XetDownloadProgressReporter

    from modal_entry.pipeline import hub

    lines: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(hub, "PROGRESS_S", 0.0)
    bars = hub._lines(lambda event, **values: lines.append((event, values)))
    with XetDownloadProgressReporter(
        reconstruction_desc="tiny.gguf", total=100, log_level=20, tqdm_class=bars
    ) as progress:
        report = SimpleNamespace(total_bytes=120, total_bytes_completed=40, total_bytes_completion_rate=1.0)
        report.total_transfer_bytes_completed, report.total_transfer_bytes_completion_rate = 30, None
        progress.update_progress(report)
    assert ("download.progress", {"file": "tiny.gguf", "bytes": 40, "total_bytes": 120}) in lines
