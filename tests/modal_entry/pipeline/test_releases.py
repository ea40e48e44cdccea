"""The pointer to the served build: switched in one step, with a way back, and never to a doubtful build."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modal_entry.pipeline.manifest import Manifest, sha256
from modal_entry.pipeline.releases import NoRelease, PromotionRefused, current, promote, resolve, rollback
from support import ROOT

CODE = "import sys; from pathlib import Path; from modal_entry.pipeline import releases, manifest\n"
CODE += "root = Path(sys.argv[1])\n"


@pytest.fixture(scope="module", autouse=True)
def own_temporary_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Locks and work folders, here and in the processes that are started, go where pytest cleans up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("tmp")))
        patch.setattr("tempfile.tempdir", None)
        yield


def whole(root: Path, tag: str) -> Path:
    """A build folder that verify_build has nothing against."""
    folder = root / tag
    folder.mkdir(parents=True)
    (folder / "llama-server").write_text(f"#!/bin/sh\necho {tag}\n")
    (folder / "llama-server").chmod(0o755)
    Manifest(
        tag=tag,
        commit=None,
        patches=(),
        compiler="cc",
        cuda=None,
        architecture=None,
        ran="version: 1",
        files={"llama-server": sha256(folder / "llama-server")},
        built_at="2026-01-01T00:00:00+00:00",
    ).write(folder)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A volume with three whole builds."""
    for tag in ("b1", "b2", "b3"):
        whole(tmp_path, tag)
    return tmp_path


def tags(root: Path) -> tuple[str, str | None]:
    """Current and previous, as another process would read them."""
    value = json.loads((root / "RELEASE.json").read_text())
    return value["current"], value["previous"]


def python(root: Path, code: str, *argv: str) -> subprocess.Popen[str]:
    """A process with `root`, `releases` and `manifest` at hand."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", CODE + code, str(root), *argv], env=env, stdout=subprocess.PIPE, text=True
    )


def test_promote_switches_and_remembers(root: Path) -> None:
    """The pointer holds the tag and the one before it; the message says what is served and that a deploy is due."""
    assert current(root) is None
    commits: list[int] = []
    first = promote(root, "b1", on_commit=lambda: commits.append(1))
    assert "b1 is served now" in str(first) and "nothing to roll back to" in str(first)
    second = promote(root, "b2", on_commit=lambda: commits.append(1))
    assert "b2 is served now" in str(second) and "goes back to b1" in str(second) and "Deploy again" in str(second)
    assert tags(root) == ("b2", "b1") and current(root) == second and resolve(root) == root / "b2"
    assert commits == [1, 1]


def test_promoting_what_is_served_changes_nothing(root: Path) -> None:
    """Else the way back would lead to the very build that one wants away from."""
    promote(root, "b1")
    promote(root, "b2")
    before = (root / "RELEASE.json").read_bytes()
    promote(root, "b2")
    assert (root / "RELEASE.json").read_bytes() == before


def test_rollback_twice_is_where_it_began(root: Path) -> None:
    """A rollback swaps the two; so the second undoes the first."""
    promote(root, "b1")
    promote(root, "b2")
    assert "b1 is served now" in str(rollback(root))
    assert tags(root) == ("b1", "b2") and resolve(root) == root / "b1"
    rollback(root)
    assert tags(root) == ("b2", "b1") and resolve(root) == root / "b2"


def test_rollback_without_a_previous_build(root: Path) -> None:
    """There is a message for 'never promoted', and another for 'only one so far'."""
    with pytest.raises(NoRelease, match="nothing was ever promoted"):
        rollback(root)
    promote(root, "b1")
    with pytest.raises(NoRelease, match="b1 is served and nothing was before it"):
        rollback(root)
    assert tags(root) == ("b1", None)


@pytest.mark.parametrize("tag", ["b404", "", ".", "..", "b1/../b2", "/etc"])
def test_an_unknown_tag_is_refused(tag: str, root: Path) -> None:
    """The message says what there is; the pointer stays."""
    promote(root, "b1")
    with pytest.raises(PromotionRefused, match="Whole builds on this volume: b1, b2, b3") as caught:
        promote(root, tag)
    assert tag != "b404" or "BUILD.json: missing: there is no such build" in str(caught.value)
    assert tags(root) == ("b1", None)


def test_a_doubtful_build_is_refused_both_ways(root: Path) -> None:
    """Promote and rollback both look at the build that they lead to, and name the file that they doubt."""
    promote(root, "b1")
    promote(root, "b2")
    for tag in ("b1", "b3"):
        with (root / tag / "llama-server").open("a") as file:
            file.write("# changed\n")
    with pytest.raises(PromotionRefused, match=r"(?s)b3 is not fit.*llama-server: sha256 is"):
        promote(root, "b3")
    with pytest.raises(PromotionRefused, match="b1 is not fit"):
        rollback(root)
    assert tags(root) == ("b2", "b1")


def test_resolve_before_the_first_promotion(root: Path) -> None:
    """The default serves until somebody promotes; then the pointer does, whatever the default."""
    with pytest.raises(NoRelease, match="nothing was ever promoted"):
        resolve(root)
    assert resolve(root, default="b3") == root / "b3"
    promote(root, "b1")
    assert resolve(root, default="b3") == root / "b1"


def test_resolve_refuses_what_is_not_there(root: Path) -> None:
    """A pointer to a removed, unfinished or incomplete build fails the start, and says which file is missing."""
    promote(root, "b1")
    (root / "b1" / "llama-server").unlink()
    with pytest.raises(PromotionRefused, match="llama-server: missing"):
        resolve(root)
    (root / "b1" / "BUILD.json").unlink()
    with pytest.raises(PromotionRefused, match="never finished"):
        resolve(root)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"current": 1, "previous": null, "since": ""}', '{"current": "b1"}']
)
def test_a_damaged_pointer_is_an_error_and_not_a_guess(content: str, root: Path) -> None:
    """No reader falls back to a default because it cannot read the pointer."""
    (root / "RELEASE.json").write_text(content)
    for read in (lambda: current(root), lambda: resolve(root, default="b1"), lambda: promote(root, "b1")):
        with pytest.raises(NoRelease, match=r"RELEASE\.json is damaged"):
            read()
    assert (root / "RELEASE.json").read_text() == content


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_crash_in_mid_write_leaves_the_old_pointer(moment: str, root: Path) -> None:
    """Killed with the new pointer written but not synced, or not yet in place: the old one is read, a retry works."""
    promote(root, "b1")
    die = "lambda *_: os.kill(os.getpid(), signal.SIGKILL)"
    target = "os.fsync" if moment == "fsync" else "Path.replace"
    code = f"import os, signal\n{target} = {die}\nreleases.promote(root, 'b2')"
    with python(root, code) as process:
        assert process.wait() == -signal.SIGKILL
    assert len(list(root.glob(".RELEASE.json.*"))) == 1
    assert tags(root) == ("b1", None) and resolve(root) == root / "b1"
    promote(root, "b2")
    assert tags(root) == ("b2", "b1")
    assert not list(root.glob(".RELEASE.json.*")), "the dead one's file is gone"


def test_a_failed_write_leaves_the_old_pointer(root: Path) -> None:
    """A volume that fails in the middle: the error comes out, nothing has changed, nothing lies around."""
    promote(root, "b1")
    code = "import os\ndef full(*_): raise OSError(28, 'No space left on device')\nos.fsync = full\n"
    code += "try: releases.promote(root, 'b2')\nexcept OSError as error: print(error)"
    with python(root, code) as process:
        assert "No space left" in process.communicate()[0]
    assert tags(root) == ("b1", None) and not list(root.glob(".RELEASE.json.*"))


def test_promotions_side_by_side_never_show_a_half(root: Path) -> None:
    """Several processes switch while another reads: every read is whole, and no switch overlooks another."""
    promote(root, "b1")
    turns = "tags = sys.argv[2:]\nfor turn in range(40): releases.promote(root, tags[turn % len(tags)])"
    reader = "seen = 0\nprint('ready', flush=True)\nwhile not (root / 'stop').exists():\n    seen += 1\n"
    reader += "    release = releases.current(root); folder = releases.resolve(root)\n"
    reader += "    assert release and release.current != release.previous and folder.is_dir(), release\nprint(seen)"
    with python(root, reader) as reading:
        assert reading.stdout and reading.stdout.readline() == "ready\n"
        writers = [python(root, turns, *order) for order in (("b1", "b2"), ("b2", "b3"), ("b3", "b1"))]
        said = [writer.communicate(timeout=50)[0] for writer in writers]
        (root / "stop").touch()
        reads = int(reading.communicate(timeout=10)[0].splitlines()[-1])
    assert [writer.returncode for writer in writers] == [0, 0, 0] and reading.returncode == 0
    assert reads > 20
    now, before = tags(root)
    assert now != before and {now, before} <= {"b1", "b2", "b3"}
    # Each switch logs what it came from. One chain without a fork leaves every tag as often as it gets there, but for
    # the first and the last.
    switches = re.findall(r"release\.switched +current=(\w+) previous=(\w+)", "".join(said))
    balance = {tag: sum((to == tag) - (since == tag) for to, since in switches) for tag in ("b1", "b2", "b3")}
    assert len(switches) > 40
    assert balance == {tag: (tag == now) - (tag == "b1") for tag in balance}
    assert not list(root.glob(".RELEASE.json.*"))
