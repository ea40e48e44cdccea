"""The pointer to the served build: switched in one step, with a way back, and never to a doubtful build."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hooks.artifacts.files import sha256_of
from modal_entry.pipeline.manifest import BuildId, Manifest
from modal_entry.pipeline.releases import NoRelease, PromotionRefused, Release, Releases
from support import ROOT

CODE = """\
import sys
from pathlib import Path
from modal_entry.pipeline.releases import Releases
root = Path(sys.argv[1])
releases = Releases(root=root, environment="main", app="app")
"""


@pytest.fixture(scope="module", autouse=True)
def own_temporary_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Locks and work folders, here and in the processes that are started, go where pytest cleans up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("tmp")))
        patch.setattr("tempfile.tempdir", None)
        yield


def whole(root: Path, tag: str, content: str = "") -> Path:
    """A build folder that check_build has nothing against."""
    folder = root / f"{tag}-cpu"
    folder.mkdir(parents=True)
    (folder / "llama-server").write_text(f"#!/bin/sh\necho {tag} {content}\n")
    (folder / "llama-server").chmod(0o755)
    Manifest(
        tag=tag,
        commit=None,
        patches=(),
        compiler="cc",
        cuda=None,
        architecture=None,
        ran="version: 1",
        files={"llama-server": sha256_of(folder / "llama-server")},
        built_at="2026-01-01T00:00:00+00:00",
    ).write(folder)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A volume with three whole builds."""
    for tag in ("b1", "b2", "b3"):
        whole(tmp_path, tag)
    return tmp_path


def app(root: Path, name: str = "app", environment: str = "main", **more: Any) -> Releases:
    """The pointer of an app."""
    return Releases(root=root, environment=environment, app=name, **more)


def pointer(root: Path) -> Path:
    """The file, where `modal deploy` looks for it."""
    return root / "releases" / "main" / "app.json"


def tags(root: Path) -> tuple[str, str | None]:
    """Current and previous, as another process would read them."""
    value = json.loads(pointer(root).read_text())
    current, previous = value["current"]["folder"], value["previous"] and value["previous"]["folder"]
    return current.removesuffix("-cpu"), previous and previous.removesuffix("-cpu")


def python(root: Path, code: str, *argv: str) -> subprocess.Popen[str]:
    """A process with `root` and `releases` at hand."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", CODE + code, str(root), *argv], env=env, stdout=subprocess.PIPE, text=True
    )


def test_promote_switches_and_remembers(root: Path) -> None:
    """The pointer holds the build with its hash and the one before it; the message says that a deploy is due."""
    assert app(root).current() is None
    commits: list[int] = []
    releases = app(root, on_commit=lambda: commits.append(1))
    first = releases.promote("b1-cpu")
    assert "b1-cpu is promoted" in str(first) and "no way back" in str(first)
    second = releases.promote("b2-cpu")
    assert "b2-cpu is promoted" in str(second) and "goes back to b1-cpu" in str(second)
    assert "`modal deploy`" in str(second)
    assert tags(root) == ("b2", "b1") and releases.current() == second
    assert second.current == BuildId.of(root / "b2-cpu")
    assert commits == [1, 1]


def test_apps_and_environments_have_pointers_of_their_own(root: Path) -> None:
    """Two apps, and staging beside production, serve different builds of one volume."""
    app(root).promote("b1-cpu")
    app(root, environment="staging").promote("b2-cpu")
    app(root, "other").promote("b3-cpu")
    served = [app(root), app(root, environment="staging"), app(root, "other")]
    assert [release.current.folder for releases in served if (release := releases.current())] == [
        *("b1-cpu", "b2-cpu", "b3-cpu")
    ]
    with pytest.raises(NoRelease, match="nothing was before it"):
        app(root).rollback()


def test_promoting_what_is_promoted_keeps_the_way_back(root: Path) -> None:
    """Else a rollback would lead to the very build that one wants away from; the time is renewed."""
    app(root).promote("b1-cpu")
    app(root).promote("b2-cpu")
    old = pointer(root).read_text()
    since = json.loads(old)["since"]
    pointer(root).write_text(old.replace(since, "2026-01-01T00:00:00+00:00"))
    release = app(root).promote("b2-cpu")
    assert tags(root) == ("b2", "b1")
    assert release.since > "2026-01-01T00:00:00+00:00"


def test_a_build_that_was_made_again_is_another_one(root: Path) -> None:
    """A promotion of the same folder with other content is a switch; a rollback to content that is gone is refused."""
    app(root).promote("b1-cpu")
    shutil.rmtree(root / "b1-cpu")
    whole(root, "b1", "another")
    release = app(root).promote("b1-cpu")
    assert release.previous and release.previous.folder == "b1-cpu" and release.previous != release.current
    with pytest.raises(PromotionRefused, match="its hash is another one"):
        app(root).rollback()


def test_rollback_twice_is_where_it_began(root: Path) -> None:
    """A rollback swaps the two; so the second undoes the first."""
    app(root).promote("b1-cpu")
    app(root).promote("b2-cpu")
    assert "b1-cpu is promoted" in str(app(root).rollback())
    assert tags(root) == ("b1", "b2")
    app(root).rollback()
    assert tags(root) == ("b2", "b1")


def test_rollback_without_a_previous_build(root: Path) -> None:
    """There is a message for 'never promoted', and another for 'only one so far'."""
    with pytest.raises(NoRelease, match="nothing was ever promoted"):
        app(root).rollback()
    app(root).promote("b1-cpu")
    with pytest.raises(NoRelease, match="b1-cpu is promoted and nothing was before it"):
        app(root).rollback()
    assert tags(root) == ("b1", None)


@pytest.mark.parametrize("tag", ["b404", "", ".", "..", "b1-cpu/../b2-cpu", "/etc"])
def test_an_unknown_tag_is_refused(tag: str, root: Path) -> None:
    """The message says what there is; the pointer stays."""
    app(root).promote("b1-cpu")
    with pytest.raises(PromotionRefused, match="Builds on this volume: b1-cpu, b2-cpu, b3-cpu") as caught:
        app(root).promote(tag)
    assert tag != "b404" or "BUILD.json: missing: there is no such build" in str(caught.value)
    assert tags(root) == ("b1", None)


def test_a_doubtful_build_is_refused_both_ways(root: Path) -> None:
    """Promote and rollback both look at the build that they lead to, and name the file that they doubt."""
    app(root).promote("b1-cpu")
    app(root).promote("b2-cpu")
    for tag in ("b1", "b3"):
        with (root / f"{tag}-cpu" / "llama-server").open("a") as file:
            file.write("# changed\n")
    with pytest.raises(PromotionRefused, match=r"(?s)b3-cpu is not fit.*llama-server: sha256 is"):
        app(root).promote("b3-cpu")
    with pytest.raises(PromotionRefused, match="b1-cpu is not fit"):
        app(root).rollback()
    assert tags(root) == ("b2", "b1")


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"current": "b1", "previous": null, "since": ""}', '{"current": {"folder": "b1-cpu"}}']
)
def test_a_damaged_pointer_is_an_error_and_not_a_guess(content: str, root: Path) -> None:
    """No reader falls back to a default because it cannot read the pointer."""
    pointer(root).parent.mkdir(parents=True)
    pointer(root).write_text(content)
    for read in (app(root).current, app(root).rollback, lambda: app(root).promote("b1-cpu")):
        with pytest.raises(NoRelease, match=r"the pointer is damaged"):
            read()
    assert pointer(root).read_text() == content


def test_a_pointer_reads_as_it_was_written(root: Path) -> None:
    """`modal deploy` reads the file from outside: its bytes give the release again."""
    release = app(root).promote("b1-cpu")
    assert Release.parse(pointer(root).read_bytes(), "pointer") == release


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_crash_in_mid_write_leaves_the_old_pointer(moment: str, root: Path) -> None:
    """Killed with the new pointer written but not synced, or not yet in place: the old one is read, a retry works."""
    app(root).promote("b1-cpu")
    die = "lambda *_: os.kill(os.getpid(), signal.SIGKILL)"
    target = "os.fsync" if moment == "fsync" else "Path.replace"
    code = f"import os, signal\n{target} = {die}\nreleases.promote('b2-cpu')"
    with python(root, code) as process:
        assert process.wait() == -signal.SIGKILL
    assert len(list(pointer(root).parent.glob(".app.json.*"))) == 1
    assert tags(root) == ("b1", None)
    app(root).promote("b2-cpu")
    assert tags(root) == ("b2", "b1")
    assert not list(pointer(root).parent.glob(".app.json.*")), "the dead one's file is gone"


def test_a_failed_write_leaves_the_old_pointer(root: Path) -> None:
    """A volume that fails in the middle: the error comes out, nothing has changed, nothing lies around."""
    app(root).promote("b1-cpu")
    code = "import os\ndef full(*_): raise OSError(28, 'No space left on device')\nos.fsync = full\n"
    code += "try: releases.promote('b2-cpu')\nexcept OSError as error: print(error)"
    with python(root, code) as process:
        assert "No space left" in process.communicate()[0]
    assert tags(root) == ("b1", None) and not list(pointer(root).parent.glob(".app.json.*"))


def test_promotions_side_by_side_never_show_a_half(root: Path) -> None:
    """Several processes switch while another reads: every read is whole, and no switch overlooks another."""
    app(root).promote("b1-cpu")
    turns = "tags = sys.argv[2:]\nfor turn in range(40): releases.promote(tags[turn % len(tags)] + '-cpu')"
    reader = "seen = 0\nprint('ready', flush=True)\nwhile not (root / 'stop').exists():\n    seen += 1\n"
    reader += "    release = releases.current()\n"
    reader += "    assert release and release.current != release.previous, release\n"
    reader += "    assert (root / release.current.folder).is_dir()\nprint(seen)"
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
    switches = re.findall(r"release\.switched +current=(\w+)-cpu previous=(\w+)-cpu", "".join(said))
    balance = {tag: sum((to == tag) - (since == tag) for to, since in switches) for tag in ("b1", "b2", "b3")}
    assert len(switches) > 40
    assert balance == {tag: (tag == now) - (tag == "b1") for tag in balance}
    assert not list(pointer(root).parent.glob(".app.json.*"))
