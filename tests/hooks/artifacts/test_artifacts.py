"""Artifacts and their marker, the Step that guards a start, and the table of `inspect_volumes`."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from rich.console import Console

from fakes.gguf_files import header, pair, tensor, text, write_gguf
from hooks.artifacts.inventory import Artifact, take_inventory
from hooks.artifacts.marker import MARKER, Marker, MarkerError
from hooks.artifacts.step import ArtifactError, ArtifactsPresent
from modal_entry.pipeline.inspection import inspect_build, inspect_volumes
from supervisor.child import Child
from supervisor.errors import ProfileError
from supervisor.redact import Redactor
from support import FAKE, fake_profile

MODEL, TEMPLATE = "tiny.gguf", "templates/chat.jinja"
ARTIFACTS = (Artifact(path=MODEL, kind="gguf"), Artifact(path=TEMPLATE, kind="file"))
REPO = "someone/tiny-GGUF"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder that is whole, with its marker."""
    root = tmp_path / "models"
    write_gguf(root / MODEL)
    (root / TEMPLATE).parent.mkdir()
    (root / TEMPLATE).write_text("{{ messages }}")
    Marker.of(root, (MODEL, TEMPLATE), repo=REPO, revision="main", commit="abc").save(root)
    return root


def found(root: Path, *, hashes: bool = False, **wanted: Any) -> tuple[str, ...]:
    """What is wrong with the folder."""
    return take_inventory(root, wanted.pop("artifacts", ARTIFACTS), hashes=hashes, **wanted).problems


def guard(step: ArtifactsPresent, **fields: Any) -> None:
    """The Step, as the lifecycle runs it before a start."""
    child = Child(profile=fake_profile(**fields), port=0, pid=None, redact=Redactor(()))
    anyio.run(step, child)


def test_a_whole_folder_has_no_problems(root: Path) -> None:
    """Sizes, hashes, header and marker agree; the report holds what a table needs."""
    report = take_inventory(root, ARTIFACTS, hashes=True, repo=REPO, revision="main")
    model, template = report.files
    assert report.problems == ()
    assert model.sha256 == hashlib.sha256((root / MODEL).read_bytes()).hexdigest()
    assert model.gguf is not None
    assert (model.gguf.architecture, model.gguf.quantisation, template.gguf) == ("gemma3", "Q4_K_M", None)
    assert not found(root, revision="abc")  # the commit that the branch meant


def cut(root: Path) -> None:
    os.truncate(root / MODEL, (root / MODEL).stat().st_size - 400)


def flip(root: Path) -> None:
    data = bytearray((root / MODEL).read_bytes())
    data[-100] ^= 1
    (root / MODEL).write_bytes(data)


def no_model(root: Path) -> None:
    (root / MODEL).write_bytes(b"<html>" + (root / MODEL).read_bytes()[6:])


def longer(root: Path) -> None:
    (root / TEMPLATE).write_text("longer than it was")


def mark(**fields: Any) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        data = json.loads((root / MARKER).read_text()) | fields
        (root / MARKER).write_text(json.dumps(data))

    return write


@pytest.mark.parametrize(
    ("harm", "problems"),
    [
        (lambda root: (root / MODEL).unlink(), ["tiny.gguf: missing"]),
        (lambda root: os.truncate(root / MODEL, 0), ["tiny.gguf: empty: 0 bytes"]),
        (
            cut,
            ["tiny.gguf: size differs: ", "tiny.gguf: truncated: the tensor table needs ", "tiny.gguf: hash differs: "],
        ),
        (no_model, ["tiny.gguf: not a GGUF: it begins with b'<html>", "tiny.gguf: hash differs: "]),
        (flip, ["tiny.gguf: hash differs: "]),
        (longer, ["templates/chat.jinja: size differs: 18 bytes, the marker", "templates/chat.jinja: hash differs"]),
        (lambda root: ((root / MODEL).unlink(), (root / MODEL).mkdir()), ["tiny.gguf: not a regular file"]),
        (lambda root: (root / MARKER).unlink(), ["ARTIFACTS.json: missing, though 2 of 2 files are there: half a"]),
        (lambda root: (root / MARKER).write_text("{"), ["ARTIFACTS.json: unreadable: JSONDecodeError"]),
        (lambda root: (root / MARKER).write_text("[]"), ["ARTIFACTS.json: unreadable: TypeError"]),
        (mark(files=[{"path": MODEL, "size_bytes": "1", "sha256": ""}]), ["ARTIFACTS.json: unreadable: TypeError"]),
        (mark(files=[]), ["ARTIFACTS.json: does not list tiny.gguf", "ARTIFACTS.json: does not list templates/chat"]),
        (mark(revision="v2"), ["ARTIFACTS.json: of another revision: 'v2' (commit abc), not 'main'"]),
        (mark(repo="else/where"), ["ARTIFACTS.json: of another repository: 'else/where', not 'someone/tiny-GGUF'"]),
    ],
    ids=lambda value: value[0].replace(" ", "-")[:60] if isinstance(value, list) else "",
)
def test_bad_things_by_name(root: Path, harm: Callable[[Path], None], problems: list[str]) -> None:
    """Each kind of harm is told once, with the file, in its own words, and nothing else is."""
    harm(root)
    seen = found(root, hashes=True, repo=REPO, revision="main")
    assert len(seen) == len(problems), seen
    for line, begin in zip(seen, problems, strict=True):
        assert line.startswith(begin)


def test_an_empty_folder_says_so(tmp_path: Path) -> None:
    """Nothing there at all is another thing than half a download."""
    assert found(tmp_path)[-1] == "ARTIFACTS.json: missing, nothing was downloaded"


def test_hashes_are_only_compared_when_asked(root: Path) -> None:
    """A flipped bit in the weights is seen by the hash alone, so the quick look passes it."""
    flip(root)
    assert found(root) == ()
    assert len(found(root, hashes=True)) == 1


def test_what_the_profile_says_counts_as_well(root: Path) -> None:
    """Exact size, range and hash of the artifact are compared, each naming who said what."""
    size = (root / MODEL).stat().st_size
    wrong: list[dict[str, Any]] = [
        {"size_bytes": size + 1},
        {"min_bytes": size + 1},
        {"max_bytes": size - 1},
        {"sha256": "0" * 64},
    ]
    for fields in wrong:
        (problem,) = found(root, artifacts=[Artifact(path=MODEL, kind="gguf", **fields)], hashes=True)
        assert "the profile says" in problem
    right = Artifact(path=MODEL, kind="gguf", size_bytes=size, min_bytes=size, max_bytes=size)
    assert found(root, artifacts=[right]) == ()


def test_a_vocabulary_is_no_model(root: Path) -> None:
    """A GGUF without tensors is refused: a server could not serve it."""
    (root / MODEL).write_bytes(header(pair("general.architecture", 8, text("gemma3"))))
    assert any("no tensors" in problem for problem in found(root))


def test_unknown_tensor_types_need_another_witness(root: Path) -> None:
    """Where the header cannot tell the size, the marker must; without it the doubt is told."""
    (root / MODEL).write_bytes(header(tensors=(tensor("t", (8,), 99, 0),)) + bytes(99))
    (root / MARKER).unlink()
    assert "tiny.gguf: size not known: tensor types (99,) are unknown, and there is no hash" in found(root)
    Marker.of(root, (MODEL, TEMPLATE), repo=REPO, revision="main").save(root)
    assert found(root) == ()


@pytest.mark.parametrize(
    "fields",
    [
        {"path": "/etc/passwd"},
        {"path": "../up.gguf"},
        {"path": "a//b"},
        {"path": ""},
        {"path": MARKER},
        {"path": "a", "size_bytes": 0},
        {"path": "a", "min_bytes": 2, "max_bytes": 1},
        {"path": "a", "sha256": "XYZ"},
        {"path": "a", "kind": "onnx"},
    ],
)
def test_impossible_artifacts_are_refused(fields: dict[str, Any]) -> None:
    """Paths stay below the folder, sizes are positive, hashes are hashes."""
    with pytest.raises(ProfileError, match=r"artifact\."):
        Artifact(**({"kind": "file"} | fields))


def test_the_marker_is_written_in_one_step(root: Path) -> None:
    """What is saved comes back; a failed write leaves the old one, and nothing beside it."""
    marker = Marker.load(root)
    assert marker is not None
    with (root / MARKER).open() as reader:  # who began with the old one reads it to its end
        old = (root / MARKER).read_text()
        replace(marker, revision="v2").save(root)
        assert reader.read() == old
    marker.save(root)
    assert Marker.load(root) == marker
    assert sorted(os.listdir(root)) == sorted([MARKER, MODEL, "templates"])
    (root / MARKER).unlink()
    (root / MARKER).mkdir()
    with pytest.raises(OSError, match="directory"):
        marker.save(root)
    with pytest.raises(MarkerError):
        Marker.load(root)
    assert sorted(os.listdir(root)) == sorted([MARKER, MODEL, "templates"])


def test_the_step_passes_a_whole_folder(root: Path) -> None:
    """Every weight of the profile is an artifact, and every artifact is whole."""
    step = ArtifactsPresent(root=root, artifacts=ARTIFACTS, repo=REPO, revision="main")
    guard(step, weights=(root / MODEL,))


def test_the_step_reads_no_weights(root: Path) -> None:
    """It compares sizes and reads a header; a byte that only a hash would notice is not looked at."""
    flip(root)
    guard(ArtifactsPresent(root=root, artifacts=ARTIFACTS))


def test_the_step_says_which_file_what_and_how_to_mend_it(root: Path) -> None:
    """The error lists every file with its fault, and the command; it survives the trip between processes."""
    cut(root)
    (root / TEMPLATE).unlink()
    mend = "modal run modal_entry/gemma.py::download_model"
    step = ArtifactsPresent(root=root, artifacts=ARTIFACTS, repo=REPO, revision="main", mend=mend)
    with pytest.raises(ArtifactError) as caught:
        guard(step)
    said = str(pickle.loads(pickle.dumps(caught.value)))  # noqa: S301
    assert f"the artifacts in {root} are not whole" in said
    assert "tiny.gguf: truncated: the tensor table needs" in said
    assert "templates/chat.jinja: missing" in said
    assert said.endswith(f"To mend it: {mend}")


def test_no_command_is_recommended_that_nobody_configured(root: Path) -> None:
    """The command that mends a folder comes from whoever made the Step; without one, the error names none."""
    (root / MODEL).unlink()
    with pytest.raises(ArtifactError) as caught:
        guard(ArtifactsPresent(root=root, artifacts=ARTIFACTS))
    assert str(caught.value).endswith(f"{MODEL}: missing")


def test_a_file_of_any_format_is_no_gguf_unless_it_is_said_to_be(root: Path) -> None:
    """The header is read where the artifact says so: the same bytes are a good file, and no GGUF."""
    (root / MODEL).write_bytes(b"safetensors")
    (plain,) = take_inventory(root, [Artifact(path=MODEL, kind="file", size_bytes=11)], hashes=False).files
    (gguf,) = take_inventory(root, [Artifact(path=MODEL, kind="gguf", size_bytes=11)], hashes=False).files
    assert [problem for problem in plain.problems if "marker" not in problem] == []
    assert any(problem.startswith("not a GGUF") for problem in gguf.problems)


def test_the_step_refuses_weights_that_nobody_verified(root: Path) -> None:
    """A model that the server would load without being an artifact is a mistake of the profile."""
    other = root / "other.gguf"
    with pytest.raises(ArtifactError, match=r"other\.gguf: the server will load it, but it is not among"):
        guard(ArtifactsPresent(root=root, artifacts=ARTIFACTS), weights=(root / MODEL, other))


# inspect_volumes


def build_folder(tmp_path: Path, *flags: str) -> Path:
    """A build whose binary is the fake server, with its BUILD.json."""
    folder = tmp_path / "llama-build" / "b1234-cpu"
    (folder / "templates").mkdir(parents=True)
    binary = folder / "llama-server"
    binary.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{FAKE}" {" ".join(flags)} "$@"\n')
    binary.chmod(0o755)
    (folder / "templates/gemma4.jinja").write_text("{{ messages }}")
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in BUILT}
    data: dict[str, Any] = {
        "tag": "b1234",
        "commit": "c0ffee",
        "patches": [{"name": "thinking", "outcome": "applied"}],
        "files": files,
    }
    data |= {"compiler": "c++ 13", "cuda": None, "architecture": None, "ran": "version: 1234", "built_at": "2026-01-01"}
    (folder / "BUILD.json").write_text(json.dumps(data))
    return folder


BUILT = ("llama-server", "templates/gemma4.jinja")


def table(root: Path, **options: Any) -> tuple[int, str]:
    """Exit status and output of `inspect_volumes`."""
    out = io.StringIO()
    status = inspect_volumes(root, ARTIFACTS, console=Console(file=out, width=1000), **options)
    return status, out.getvalue()


def test_the_table_of_what_is_fit_to_serve(root: Path, tmp_path: Path) -> None:
    """Every artifact with its facts, the build with its flags and template, the verdict, and exit status 0."""
    status, out = table(root, build=build_folder(tmp_path), repo=REPO, revision="main")
    assert status == 0, out
    size = f"{(root / MODEL).stat().st_size:,}"
    digest = hashlib.sha256((root / MODEL).read_bytes()).hexdigest()[:12]
    facts = (
        MODEL,
        size,
        digest,
        "gemma3",
        "Q4_K_M",
        "4,096",
        "its own",
        f"{REPO} @ main",
        "b1234",
        "thinking: applied",
    )
    shown = " ".join(out.split())  # a long path is a long title, which may break anywhere
    for fact in (*facts, "templates/gemma4.jinja", "--load-mode", "everything is as it should be"):
        assert fact in shown


def test_a_quick_table_says_what_it_did_not_look_at(root: Path) -> None:
    """Without hashing, the verdict says so."""
    status, out = table(root, hashes=False)
    assert (status, "not hashed" in out, "nothing was hashed" in out) == (0, True, True)


@pytest.mark.parametrize("harm", [cut, flip, no_model, mark(revision="v2"), lambda root: (root / MARKER).unlink()])
def test_any_doubt_about_a_model_is_exit_status_1(root: Path, harm: Callable[[Path], None]) -> None:
    """Whatever is wrong, the status says so, and the command that mends it is printed."""
    harm(root)
    status, out = table(root, repo=REPO, revision="main", mend="run the download")
    assert (status, "not fit to serve" in out, "To mend it: run the download" in out) == (1, True, True)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda folder: (folder / "BUILD.json").unlink(), "BUILD.json: missing"),
        (lambda folder: (folder / "BUILD.json").write_text("{}"), "BUILD.json: not a manifest"),
        (lambda folder: (folder / BUILT[1]).unlink(), "templates/gemma4.jinja: missing"),
        (lambda folder: (folder / BUILT[1]).write_text("other"), "templates/gemma4.jinja: sha256"),
        (lambda folder: (folder / "libggml.so").write_text("stray"), "libggml.so: not in BUILD.json"),
        (lambda folder: (folder / BUILT[0]).chmod(0o644), "llama-server: not executable"),
    ],
)
def test_any_doubt_about_a_build_is_exit_status_1(
    root: Path, tmp_path: Path, harm: Callable[[Path], None], words: str
) -> None:
    """A build that is not what its BUILD.json says is named, and not fit to serve."""
    folder = build_folder(tmp_path)
    harm(folder)
    status, out = table(root, build=folder)
    assert (status, words in out, "run build_llama_server" in out) == (1, True, True), out


def test_a_build_for_another_gpu_is_a_doubt(tmp_path: Path) -> None:
    """A whole build of another architecture would not run on the GPU of the deployment."""
    folder = build_folder(tmp_path)
    assert inspect_build(folder).doubts == ()
    (doubt,) = inspect_build(folder, "80").doubts
    assert doubt == "llama-server: built for architecture None, the GPU has 80"


def test_a_binary_without_the_flags_is_a_doubt(tmp_path: Path) -> None:
    """A build that could only map its weights, or lacks a flag that every profile uses, is found before it serves."""
    omitted = ("--load-mode", "--no-mmap", "--jinja")
    build = inspect_build(build_folder(tmp_path, *(f"--help-omit {flag}" for flag in omitted)))
    assert len(build.doubts) == 2
    assert "llama-server: its --help lists no --jinja" in build.doubts
    assert "neither --load-mode nor --no-mmap" in build.doubts[1]


def test_a_binary_that_needs_a_gpu_driver_is_not_judged_without_one(tmp_path: Path) -> None:
    """Where the driver's library is missing, the flags are not asked for, and the table says why."""
    folder = build_folder(tmp_path)
    line = "llama-server: error while loading shared libraries: libcuda.so.1: cannot open shared object file"
    binary = folder / "llama-server"
    binary.write_text(f'#!/bin/sh\necho "{line}" >&2\nexit 127\n')
    data = json.loads((folder / "BUILD.json").read_text())
    data["files"]["llama-server"] = hashlib.sha256(binary.read_bytes()).hexdigest()
    (folder / "BUILD.json").write_text(json.dumps(data))
    build = inspect_build(folder)
    assert (build.doubts, build.facts["flags"]) == ((), "not asked: this machine has no GPU driver")
