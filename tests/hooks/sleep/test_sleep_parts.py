"""The private folder of the sockets, the judgement of what escaped, and how the library is built and found."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hooks.sleep.accounting import TOLERANCE_BYTES, escaped, spread
from hooks.sleep.folder import FolderInUse, PrivateFolder, new_path, sockets
from hooks.sleep.offload import build
from hooks.sleep.offload.client import Device, Status
from hooks.sleep.offload.errors import CompileFailed, NoCompiler
from supervisor import events

GIB = 1 << 30
MIB = 1 << 20

# ------------------------------------------------------------------------------------------------ the folder


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where folders are made; of a shorter name than pytest's own folders."""
    with tempfile.TemporaryDirectory(prefix="w", dir="/tmp") as short:
        monkeypatch.setattr(tempfile, "tempdir", short)
        yield Path(short)
        monkeypatch.undo()


def test_a_folder_is_private_whatever_the_umask(base: Path) -> None:
    """0700, also where the umask would take our own rights away; gone with the child, with what lies in it."""
    path, folder = new_path(), PrivateFolder()
    before = os.umask(0o577)
    try:
        folder.make(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    (path / "12.sock").touch()
    folder.observe(events.Starting(attempt=1))
    assert path.exists()
    folder.observe(events.TeardownFinished(took_s=0, escalated=False, drained=True))
    assert not path.exists() and path.parent == base
    folder.observe(events.Stopped())


@pytest.mark.parametrize("event", [events.Stopped(), events.Failed(error="SpawnError", detail="")])
def test_a_folder_of_a_child_that_never_began_is_gone_too(base: Path, event: events.Event) -> None:
    """No teardown tells of it."""
    path, folder = new_path(), PrivateFolder()
    folder.make(path)
    folder.observe(event)
    assert not path.exists() and path.parent == base


def test_names_cannot_be_guessed_and_leave_room_for_a_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each is another one, and an address has room for the largest pid, also where TMPDIR is long."""
    assert new_path() != new_path()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("long" * 20)))
    path = new_path()
    assert path.parent == Path("/tmp")  # noqa: S108
    assert len(os.fsencode(path / "4194304.sock")) <= 107
    assert len(path.name) >= len("warmboot-gpu-") + 16


def test_a_machine_where_nothing_can_be_written_still_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """The profile is made, and the start says in a notice what is wrong; no traceback keeps the server from it."""

    def nowhere() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    assert new_path().parent == Path("/tmp")  # noqa: S108


def test_a_folder_of_others_is_refused(base: Path) -> None:
    """A link or a folder that others may enter is not used."""
    path, folder = new_path(), PrivateFolder()
    path.mkdir(mode=0o700)
    path.chmod(0o750)
    held = os.open(path, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)  # else it would be swept, because it is ours
    with pytest.raises(PermissionError, match="not a folder of ours alone"):
        folder.make(path)
    os.close(held)
    path.rmdir()
    path.symlink_to(base)
    with pytest.raises(OSError, match=r"Not a directory|Too many levels"):
        folder.make(path)
    path.unlink()


def test_a_restart_begins_with_an_empty_folder(base: Path) -> None:
    """The sockets of an earlier life are taken away."""
    path, folder = new_path(), PrivateFolder()
    folder.make(path)
    (path / "12.sock").touch()
    folder.make(path)
    assert sockets(path) == [] and path.is_dir() and path.parent == base
    folder.remove()


def test_folders_of_killed_supervisors_are_swept(base: Path) -> None:
    """Nobody holds the lock of those; a folder that is in use stays."""
    used, mine = PrivateFolder(), PrivateFolder()
    used.make(new_path())
    left = new_path()
    left.mkdir(mode=0o700)
    (left / "12.sock").touch()
    mine.make(new_path())
    assert not left.exists()
    assert used.path and used.path.is_dir() and used.path.parent == base
    used.remove()
    mine.remove()


def test_a_folder_of_another_server_is_not_shared(base: Path) -> None:
    """One that is locked, and one in which a process listens: its memory would be taken away together with ours."""
    path, first, second = new_path(), PrivateFolder(), PrivateFolder()
    first.make(path)
    with pytest.raises(FolderInUse, match="Make a GpuMemory, and a profile with it, for each server"):
        second.make(path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path / "12.sock"))
        listener.listen()
        with pytest.raises(FolderInUse):
            first.make(path)
        assert first.path == path and path.parent == base
    first.make(path)
    assert sockets(path) == []
    first.remove()


def test_sockets_are_listed_by_number(tmp_path: Path) -> None:
    """Other files are none."""
    for name in ("10.sock", "9.sock", "x.sock", "9.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in sockets(tmp_path)] == ["9.sock", "10.sock"]
    assert sockets(tmp_path / "missing") == []


# ------------------------------------------------------------------------------------------------ what escaped


def status(pid: int, *devices: Device) -> Status:
    """A process with these GPUs."""
    size = sum(device.bytes for device in devices)
    counts: dict[str, Any] = {"allocations": 1, "bytes": size, "stored_bytes": 0, "zero_bytes": 0, "ipc_refused": 0}
    return Status(pid=pid, version=1, state="awake", devices=devices, **counts)


def gpu(number: int = 0, *, caught: int, used: int = 0, process: int | None = None, before: int = 0) -> Device:
    """One GPU of a process, in GiB."""
    return Device(
        device=number,
        bytes=caught * GIB,
        used_bytes=used * GIB,
        total_bytes=80 * GIB,
        process_bytes=None if process is None else process * GIB,
        before_bytes=before * GIB,
    )


def test_a_process_is_judged_by_what_nvml_says_of_it() -> None:
    """Others on the same GPU do not matter then; the tolerance is each process's own, and is not an escape yet."""
    quiet = status(1, gpu(caught=10, process=12, used=70))
    loud = status(2, gpu(caught=10, process=13, used=70))
    assert escaped([quiet]) == ()
    (loss,) = escaped([quiet, loud])
    assert (loss.pid, loss.device, loss.bytes, loss.caught_bytes) == (2, 0, 3 * GIB, 10 * GIB)
    assert str(loss).startswith("process 2 holds 3.2 GB on GPU 0 that the library did not catch, beside 10.7 GB")


def test_without_nvml_the_whole_gpu_is() -> None:
    """What came since the first catch, minus all that was caught there, with a tolerance for each process."""
    one, two = status(1, gpu(caught=10, used=30, before=5)), status(2, gpu(caught=11, used=30, before=20))
    assert escaped([one, two]) == ()  # 30 - 5 - 21 = 4
    (loss,) = escaped([one, two], TOLERANCE_BYTES - 1)
    assert (loss.pid, loss.bytes, loss.caught_bytes) == (None, 4 * GIB, 21 * GIB)
    assert str(loss).startswith("there are 4.3 GB on GPU 0")


def test_one_process_that_nvml_does_not_know_makes_it_the_whole_gpu() -> None:
    """Half an account is none."""
    known, unknown = status(1, gpu(caught=10, process=50, used=50)), status(2, gpu(caught=10, used=50))
    assert [loss.pid for loss in escaped([known, unknown])] == [None]


def test_each_gpu_is_judged_for_itself() -> None:
    """One that is in order does not make up for another."""
    both = status(1, gpu(0, caught=40, process=40), gpu(1, caught=1, process=9))
    assert [(loss.device, loss.bytes) for loss in escaped([both])] == [(1, 8 * GIB)]


def test_ranks_on_gpus_of_their_own_are_recognised() -> None:
    """Several processes, not all on the same GPUs; one process on several GPUs is none of that, nor one without any."""
    ranks = status(2, gpu(0, caught=1)), status(1, gpu(1, caught=1)), status(3, gpu(2, caught=0))
    assert spread(ranks) == (1, 2)
    assert spread([status(1, gpu(0, caught=1), gpu(1, caught=1)), status(3)]) == ()
    assert spread([status(1, gpu(0, caught=1)), status(2, gpu(0, caught=3))]) == ()


# ------------------------------------------------------------------------------------------------ the library


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    return tmp_path / "cache"


def fake_cc(folder: Path, script: str) -> str:
    """A compiler that does this."""
    path = folder / "cc"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


# Writes its last but one -o's file, as compilers do.
WRITES = 'while [ "$1" != -o ]; do shift; done; echo "built: $3" > "$2"; echo more >> "${0%/*}/runs"'


def test_the_library_is_built_once_and_found(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole and in the cache, under the hash of its sources: other sources or flags find none, and build their own."""
    cc = fake_cc(tmp_path, WRITES)
    monkeypatch.setenv("CC", f"{cc} -m64")
    assert build.find() is None
    path = build.build()
    assert path.parent.parent == cache / "warmboot" / "gpu-memory"
    assert path.name == "libwarmboot_gpu.so" and path.read_text().startswith("built: ")
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert build.find() == path == build.build()
    assert (tmp_path / "runs").read_text() == "more\n"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert build.find() == path  # the server may stand in another folder
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-O3"))
    assert build.find() is None


def test_a_folder_of_choice_gets_a_fresh_build(cache: Path, tmp_path: Path) -> None:
    """It replaces what is there, and the cache stays as it is."""
    cc = fake_cc(tmp_path, WRITES)
    for _ in range(2):
        assert build.build(tmp_path / "out" / "put", cc=cc) == tmp_path / "out" / "put" / "libwarmboot_gpu.so"
    assert (tmp_path / "runs").read_text() == "more\nmore\n"
    assert not cache.exists()


def test_no_compiler(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names what was looked for, and what to install."""
    with pytest.raises(NoCompiler, match=r"no C compiler 'clang-0': install one .* variable CC"):
        build.build(cc="clang-0 -O3")
    with pytest.raises(NoCompiler, match='no C compiler "cc -Dx='):
        build.build(cc="cc -Dx='")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(NoCompiler, match="'cc'") as caught:
        build.build()
    assert caught.value.cli_status == 3 and not cache.exists()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("for i in $(seq 99); do echo line $i; done; echo 'x.c:1: error' >&2; exit 1", "ended with code 1"),
        ("kill -9 $$", "killed by signal 9"),
        ("exit 0", "ended with code 0"),
    ],
    ids=["refuses", "killed", "writes-nothing"],
)
def test_a_compile_that_fails(cache: Path, tmp_path: Path, script: str, words: str) -> None:
    """The error has the compiler, how it ended, and its last lines; no half a library is left."""
    with pytest.raises(CompileFailed, match=words) as caught:
        build.build(cc=fake_cc(tmp_path, script))
    assert len(caught.value.tail) <= 20
    if "seq" in script:
        assert caught.value.tail[-2:] == ("line 99", "x.c:1: error") and "x.c:1: error" in str(caught.value)
    assert build.find() is None
    assert list(cache.rglob("*.so*")) == []


def test_a_compiler_that_cannot_be_started(cache: Path, tmp_path: Path) -> None:
    """Such as a file of another machine."""
    (tmp_path / "cc").write_bytes(b"\x7fELF nonsense")
    (tmp_path / "cc").chmod(0o755)
    with pytest.raises(CompileFailed, match="could not be started"):
        build.build(cc=str(tmp_path / "cc"))
    assert build.find() is None and cache.exists()


def test_without_sources_and_without_a_home(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package without its sources says so; where no cache can be, nothing is found."""
    monkeypatch.setattr(build, "_SOURCES", tmp_path)
    with pytest.raises(CompileFailed, match="install the package anew"):
        build.build(cc="true")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", classmethod(lambda _: (_ for _ in ()).throw(RuntimeError("no home"))))
    assert build.find() is None and cache.exists()


def test_what_the_loader_cannot_take(tmp_path: Path) -> None:
    """What ld.so would leave out is told beforehand: a missing file, one that is no library, a path with a blank."""
    path = tmp_path / "lib.so"
    assert build.load_error(path) == f"there is no file {path}"
    path.write_text("no library")
    assert "the loader ignores it" in (build.load_error(path) or "") or "ended with" in (build.load_error(path) or "")
    for name in ("a b.so", "a:b.so", "a$b.so", "a{port}.so"):
        shutil.copy(path, tmp_path / name)
        assert "LD_PRELOAD cannot name" in (build.load_error(tmp_path / name) or "")


@pytest.mark.compiler
@pytest.mark.timeout(120)
def test_the_packaged_sources_build_and_load(cache: Path, tmp_path: Path) -> None:
    """With the machine's own compiler; and the loader takes what comes out."""
    path = build.build(tmp_path)
    assert build.load_error(path) is None
    assert path.stat().st_size > 10_000 and not cache.exists()
