"""The build, for real: git clones a local repository, CMake and the compiler make a small llama-server of it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hooks.sleep.offload import build as offload
from hooks.sleep.offload.build import LIBRARY, load_error
from modal_entry.pipeline.build import STALE_S, BuildConflict, Built, build
from modal_entry.pipeline.commands import CommandFailed, run_command
from modal_entry.pipeline.manifest import BuildFault, Manifest, check_build
from modal_entry.pipeline.patches import PatchDoesNotApply
from supervisor.errors import ProfileError
from support import DATA, ROOT, until

pytestmark = [pytest.mark.slow, pytest.mark.compiler, pytest.mark.timeout(120)]

CMAKE = """\
cmake_minimum_required(VERSION 3.16)
project(small C)
option(LLAMA_OPENSSL "as upstream" ON)
add_library(greeting SHARED greeting.c)
add_executable(llama-server main.c)
target_compile_definitions(llama-server PRIVATE NUMBER="${LLAMA_BUILD_NUMBER}" OPENSSL="${LLAMA_OPENSSL}")
target_link_libraries(llama-server PRIVATE greeting)
add_custom_command(TARGET llama-server PRE_LINK
    COMMAND sh -c "if [ -n \\"$HOLD_LINK\\" ]; then echo here > \\"$HOLD_LINK\\" && sleep 60$<SEMICOLON> fi" VERBATIM)
"""
MAIN = """\
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
const char *greeting(void);
int main(void) {
    const char *hold = getenv("HOLD_RUN");
    if (hold) { fclose(fopen(hold, "w")); sleep(60); }
    printf("%s\\nversion: %s, openssl %s\\n", greeting(), NUMBER, OPENSSL);
    return 0;
}
"""
# A stand-in for the driver's library, not installed with the binary: the loader's own words come out.
DRIVER = """\
add_library(cuda SHARED driver.c)
set_target_properties(cuda PROPERTIES SOVERSION 1 LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/stubs)
target_link_libraries(llama-server PRIVATE cuda)
"""
BUILDER = """\
import json, sys
from pathlib import Path
from modal_entry.pipeline.build import build
tag, root, source = sys.argv[1:]
print(build(tag, root=Path(root), source=source, cuda_arch=None, on_commit=lambda: print("committed")))
"""


@pytest.fixture(scope="module", autouse=True)
def own_temporary_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Locks and work folders, here and in the processes that are started, go where pytest cleans up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("tmp")))
        patch.setattr("tempfile.tempdir", None)
        yield


def git(*argv: str, cwd: Path) -> str:
    """Git without the user's settings."""
    env = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    return subprocess.run(["git", *who, *argv], cwd=cwd, env=env, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Tags: b100 builds, b101 does not compile, b102 needs a driver, b103 has no Gemma 4 parser, b104 dies."""
    home = tmp_path_factory.mktemp("llama.cpp")
    files = {
        "CMakeLists.txt": CMAKE,
        "main.c": MAIN,
        "greeting.c": 'const char *greeting(void) { return "hello"; }\n',
        "common/chat.cpp": (DATA / "gemma4_unpatched.cpp").read_text(),
        "common/chat.h": "    std::string thinking_start_tag;\n    std::string thinking_end_tag;\n",
        "models/templates/google-gemma-4-31B-it.jinja": "{{ messages }}\n",
        "models/templates/other.jinja": "no\n",
    }
    git("init", "--quiet", "--initial-branch=master", cwd=home)
    _commit(home, "b100", files)
    _commit(home, "b101", {"main.c": '#error "the reason why it fails"\n'})
    _commit(home, "b102", {**files, "CMakeLists.txt": CMAKE + DRIVER, "driver.c": "int cuInit(void) { return 0; }\n",
                           "main.c": "int cuInit(void);\n" + MAIN.replace("return 0", "return cuInit()")})  # fmt: skip
    _commit(home, "b103", {**files, "common/chat.cpp": "// nothing of the kind\n"})
    _commit(home, "b104", {**files, "main.c": MAIN.replace("return 0", "fflush(stdout); abort()")})
    return home.as_uri()


def _commit(home: Path, tag: str, files: dict[str, str]) -> None:
    for name, content in files.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(content)
    git("add", "-A", cwd=home)
    git("commit", "--quiet", "-m", tag, cwd=home)
    git("tag", tag, cwd=home)


@pytest.fixture(scope="module")
def finished(repository: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume with b100 on it; copy it, do not change it."""
    root = tmp_path_factory.mktemp("volume")
    build("b100", root=root, source=repository, cuda_arch=None, on_commit=list)
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    """A volume with b100 on it that may be changed."""
    return Path(shutil.copytree(finished, tmp_path / "volume"))


def make(root: Path, repository: str, tag: str = "b100", **more: Any) -> Built:
    """Build for CPUs."""
    return build(tag, **{"root": root, "source": repository, "cuda_arch": None, "on_commit": list, **more})


def start(tag: str, root: Path, repository: str, **env: str) -> subprocess.Popen[str]:
    """A build in a process of its own, which leads a group."""
    return subprocess.Popen(
        [sys.executable, "-c", BUILDER, tag, str(root), repository],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_build_is_whole_and_says_how_it_came_about(finished: Path, repository: str) -> None:
    """Binary, library and template are there under their hashes; BUILD.json holds commit, patch, compiler, version."""
    folder = finished / "b100-cpu"
    value = json.loads((folder / "BUILD.json").read_text())
    commit = git("rev-parse", "b100", cwd=Path(repository.removeprefix("file://"))).strip()
    assert value["tag"] == "b100" and value["commit"] == commit
    assert value["patches"] == [{"name": "gemma4-thinking-tags", "outcome": "applied"}]
    assert value["architecture"] is None and value["cuda"] is None
    assert "version" in value["compiler"].lower() or value["compiler"][-1].isdigit()
    assert value["ran"] == "version: 100, openssl OFF", "the tag's number despite the shallow clone; declared options"
    assert set(value["files"]) == {"llama-server", "libgreeting.so", "templates/google-gemma-4-31B-it.jinja"}
    assert value["gpu_memory"] == "none: for CPUs"
    assert check_build(folder) == []
    assert os.listdir(finished) == ["b100-cpu"], "no staging folder stays"


def test_a_moved_binary_finds_its_library(root: Path) -> None:
    """The library beside the binary is found wherever the folder lies: RPATH is $ORIGIN."""
    moved = root.rename(root.with_name("elsewhere")) / "b100-cpu" / "llama-server"
    assert subprocess.run([moved], cwd="/", capture_output=True, check=True, text=True).stdout.startswith("hello")


def test_a_whole_build_is_not_built_again(root: Path, repository: str) -> None:
    """The second call runs no command, touches no file, says so, and commits all the same."""
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    commits: list[int] = []

    def run(argv: Any, *, cwd: Path) -> str:
        pytest.fail(f"ran {argv} in {cwd}")

    done = make(root, repository, run=run, on_commit=lambda: commits.append(1))
    assert str(done) == f"already built: {root / 'b100-cpu'}" and not done.fresh
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert commits == [1], "an earlier run may have died between rename and commit"


@pytest.mark.parametrize(("where", "tag"), [("HOLD_LINK", "b100"), ("HOLD_RUN", "b100")], ids=["compiling", "staged"])
def test_a_killed_build_leaves_nothing_that_looks_whole(where: str, tag: str, tmp_path: Path, repository: str) -> None:
    """kill -9 in the middle of compiling, or with everything staged but BUILD.json; the next run succeeds."""
    root, sign = tmp_path / "volume", tmp_path / "sign"
    with start(tag, root, repository, **{where: str(sign)}) as process:
        until(lambda: sign.exists() or process.poll() is not None)
        assert sign.exists(), f"it ended with {process.returncode}"
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (root / f"{tag}-cpu").exists()
    left = list(root.glob(".staging-*"))
    assert len(left) == (where == "HOLD_RUN") and not list(root.rglob("BUILD.json"))

    assert make(root, repository).fresh
    assert check_build(root / f"{tag}-cpu") == []
    assert list(root.glob(".staging-*")) == left, "a young staging folder may have an owner elsewhere"
    for path in left:
        os.utime(path, (time.time() - STALE_S - 1,) * 2)
    make(root, repository)
    assert os.listdir(root) == [f"{tag}-cpu"], "an old one has none"


def test_a_half_filled_folder_is_replaced(tmp_path: Path, repository: str) -> None:
    """A folder of that tag with files but no BUILD.json is no build; nothing of it stays."""
    folder = tmp_path / "b100-cpu"
    (folder / "templates").mkdir(parents=True)
    (folder / "llama-server").write_bytes(b"half")
    (folder / "old.so").write_bytes(b"x")
    assert check_build(folder) == [
        BuildFault(path="BUILD.json", problem="missing: the build was never finished"),
    ]
    assert make(tmp_path, repository).fresh
    assert check_build(folder) == [] and not (folder / "old.so").exists()
    assert os.listdir(tmp_path) == ["b100-cpu"]


def test_every_damage_is_found_and_repaired(root: Path, repository: str) -> None:
    """A changed byte, a missing file, one too many, a lost mode: each is named, and the next build mends it."""
    folder = root / "b100-cpu"
    library = folder / "libgreeting.so"
    content = bytearray(library.read_bytes())
    content[len(content) // 2] ^= 1
    library.write_bytes(content)
    (folder / "templates" / "google-gemma-4-31B-it.jinja").unlink()
    (folder / "libcuda.so.1").write_bytes(b"")
    (folder / "llama-server").chmod(0o644)
    found = {fault.path: fault.problem for fault in check_build(folder)}
    assert found.pop("libgreeting.so").startswith("sha256 is")
    assert found == {
        "templates/google-gemma-4-31B-it.jinja": "missing",
        "libcuda.so.1": "not in BUILD.json",
        "llama-server": "not executable",
    }
    assert make(root, repository).fresh
    assert check_build(folder) == []


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "Expecting value"),
        ("[]", "wrong type"),
        ('{"files": {"llama-server": "0"}}', "no field 'tag'"),
        ('{"files": {"a": "0"}}', "no llama-server"),
        ('{"files": {"llama-server": "0", "../b99/x": "0"}}', "outside"),
        ('{"files": ["llama-server"]}', "does not map"),
    ],
)
def test_a_damaged_manifest_is_found(content: str, why: str, root: Path) -> None:
    """Whatever BUILD.json holds, check_build answers in words and does not fail."""
    (root / "b100-cpu" / "BUILD.json").write_text(content)
    (fault,) = check_build(root / "b100-cpu")
    assert fault.path == "BUILD.json" and why in fault.problem


def test_a_build_of_another_tag_is_found(root: Path) -> None:
    """A folder that was renamed by hand is not the tag that it is called."""
    (root / "b100-cpu").rename(root / "b200-cpu")
    (fault,) = check_build(root / "b200-cpu")
    assert fault.problem == "is of b100-cpu, in the folder of b200-cpu"
    assert check_build(root / "b300-cpu")[0].problem == "missing: there is no such build"


def test_a_failed_compile_shows_its_lines(tmp_path: Path, repository: str) -> None:
    """The error names the command and holds the compiler's own words; no folder, no commit."""
    commits: list[int] = []
    with pytest.raises(CommandFailed) as caught:
        make(tmp_path, repository, "b101", on_commit=lambda: commits.append(1))
    error = caught.value
    assert error.argv[:2] == ("cmake", "--build") and error.exit_code
    assert "the reason why it fails" in str(error)
    assert os.listdir(tmp_path) == [] and commits == []


def test_an_unknown_tag_shows_what_git_says(tmp_path: Path, repository: str) -> None:
    """Git's own line is in the error."""
    with pytest.raises(CommandFailed, match="b404 not found in upstream"):
        make(tmp_path, repository, "b404")


@pytest.mark.parametrize("tag", ["", "../b100", "-b", ".hidden", "a b", "b1\n"])
def test_a_tag_that_is_no_folder_name_is_refused(tag: str, tmp_path: Path) -> None:
    """A tag is one name, and no option for git."""
    with pytest.raises(ProfileError, match="a tag like b9940"):
        make(tmp_path, "unused", tag)
    assert os.listdir(tmp_path) == []


def test_a_patch_that_does_not_apply_fails_the_build(tmp_path: Path, repository: str) -> None:
    """No Gemma 4 parser, no build; without the patch there is one, and BUILD.json says so."""
    with pytest.raises(PatchDoesNotApply):
        make(tmp_path, repository, "b103")
    assert os.listdir(tmp_path) == []
    assert make(tmp_path, repository, "b103", patches=()).manifest.patches == ()


def test_a_binary_that_needs_the_driver_is_recorded_as_not_run(tmp_path: Path, repository: str) -> None:
    """A builder without libcuda.so.1 cannot run what it built: that is written down, with the loader's words."""
    done = make(tmp_path, repository, "b102")
    assert done.manifest.ran.startswith("not run here: ")
    assert "libcuda.so.1: cannot open shared object file" in done.manifest.ran


def test_a_binary_that_dies_is_no_build(tmp_path: Path, repository: str) -> None:
    """A binary that cannot even state its version is never installed, and its staging folder goes."""
    with pytest.raises(CommandFailed, match=r"llama-server --version` was killed by SIGABRT") as caught:
        make(tmp_path, repository, "b104")
    assert caught.value.tail[0] == "hello"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("checkout", ["none", "broken"])
def test_a_source_tree_is_built_and_not_changed(checkout: str, tmp_path: Path, repository: str) -> None:
    """A given tree is copied before it is patched; where git can read no checkout there is no commit to record."""
    tree = tmp_path / "tree"
    git("clone", "--quiet", "--branch", "b100", repository, str(tree), cwd=tmp_path)
    shutil.rmtree(tree / ".git")
    if checkout == "broken":  # as in a package that was made from a submodule
        (tree / ".git").write_text("gitdir: ../../.git/modules/llama.cpp\n")
    before = {path: path.read_bytes() for path in tree.rglob("*") if path.is_file()}
    done = make(tmp_path / "volume", "", source=tree)
    assert done.manifest.commit is None and done.manifest.patches[0][1] == "applied"
    assert {path: path.read_bytes() for path in tree.rglob("*") if path.is_file()} == before


def test_a_checkout_given_as_a_source_tree_has_its_commit(tmp_path: Path, repository: str) -> None:
    """The commit of a given tree is recorded where git knows it."""
    git("clone", "--quiet", "--branch", "b100", repository, "tree", cwd=tmp_path)
    done = make(tmp_path / "volume", "", source=tmp_path / "tree")
    assert done.manifest.commit == git("rev-parse", "HEAD", cwd=tmp_path / "tree").strip()


def test_a_build_of_another_kind_is_never_replaced(root: Path, repository: str) -> None:
    """'Already built' holds for what was asked for; what may be in use stays as it is."""
    before = Manifest.read(root / "b100-cpu")
    with pytest.raises(BuildConflict, match=r"never replaced"):
        make(root, repository, patches=())
    assert Manifest.read(root / "b100-cpu") == before and check_build(root / "b100-cpu") == []


def test_two_architectures_have_a_build_each(root: Path, repository: str) -> None:
    """A second kind of GPU meets no conflict: its build lies beside the first, which is not touched.

    Beside a server for GPUs lies the library that puts their memory aside, under its hash as all files are.
    """
    before = (root / "b100-cpu" / "BUILD.json").read_bytes()
    done = make(root, repository, cuda_arch="80", run=without_cuda)
    assert done.fresh and done.folder.name == "b100-sm80" and done.manifest.architecture == "80"
    assert check_build(done.folder) == [] and (root / "b100-cpu" / "BUILD.json").read_bytes() == before
    assert done.manifest.gpu_memory == "built" and LIBRARY in done.manifest.files
    assert load_error(done.folder / LIBRARY) is None
    assert str(done) == f"built: {done.folder}"
    (done.folder / LIBRARY).write_bytes(b"another")
    assert [fault.path for fault in check_build(done.folder)] == [LIBRARY]


def without_cuda(argv: Any, *, cwd: Path) -> str:
    """Runs a command; there is no CUDA here, so that CMake configures as for a CPU."""
    if argv[0] == "cmake" and "-S" in argv:
        argv = [word for word in argv if "CUDA" not in word]
    return run_command(argv, cwd=cwd)


def test_a_library_that_does_not_compile_costs_no_build(
    tmp_path: Path, repository: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's build is whole without the library, and says why there is none."""
    monkeypatch.setattr(offload, "build", partial(offload.build, cc="no-such-compiler"))
    done = make(tmp_path, repository, cuda_arch="80", run=without_cuda)
    assert check_build(done.folder) == [] and LIBRARY not in done.manifest.files
    assert done.manifest.gpu_memory.startswith("not built: there is no C compiler 'no-such-compiler'")
    assert f"without {LIBRARY}" in str(done)


def test_a_build_from_before_there_was_a_library_is_whole(root: Path) -> None:
    """Builds on a volume stay what they are: no field about the library, no doubt."""
    path = root / "b100-cpu" / "BUILD.json"
    value = json.loads(path.read_text())
    del value["gpu_memory"]
    path.write_text(json.dumps(value))
    assert check_build(path.parent) == []
    assert Manifest.read(path.parent).gpu_memory == "none: built before there was a library"


def test_two_builders_of_one_tag_make_one_build(tmp_path: Path, repository: str) -> None:
    """The second waits for the first and finds its work."""
    root = tmp_path / "volume"
    with start("b100", root, repository) as one, start("b100", root, repository) as other:
        said = [process.communicate(timeout=60)[0].splitlines()[-1] for process in (one, other)]
    assert sorted(said) == [f"already built: {root / 'b100-cpu'}", f"built: {root / 'b100-cpu'}"]
    assert os.listdir(root) == ["b100-cpu"] and check_build(root / "b100-cpu") == []
