"""Which process has a socket, a thread and memory of ours, and what is left of it when it ends."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fakes.cuda.build import Built
from fakes.cuda.program import MIB, Engine, engine, environment
from support import until

EXPORTED = {
    *("cudaMalloc", "cudaFree", "cudaFreeAsync", "cudaIpcGetMemHandle"),
    *("cudaDeviceEnablePeerAccess", "cudaDeviceDisablePeerAccess"),
    *("cuMemAlloc_v2", "cuMemFree_v2", "cuMemFreeAsync", "cuIpcGetMemHandle"),
}


def threads(program: Engine) -> dict[str, str]:
    """A program's threads: their names, and the signals that they block."""
    found = {}
    for task in Path(f"/proc/{program.pid}/task").iterdir():
        fields = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)
        found[fields["Name"]] = fields["SigBlk"]
    return found


def open_files(pid: int) -> list[str]:
    """What a process has open, as the kernel names it."""
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.append(str(link.readlink()))
    return found


def physical(program: Engine) -> int:
    """How many pieces of the stub's physical memory are mapped: CUDA's own allocations have none."""
    return sum("fake-cuda" in name for name in open_files(program.pid))


def test_only_what_the_library_stands_in_front_of_is_visible(cuda: Built) -> None:
    """Nothing else of it can collide with a server's own names, and it needs libc alone."""
    listed = subprocess.run(["nm", "-D", "--defined-only", cuda.library], capture_output=True, text=True, check=True)
    assert {line.split()[-1] for line in listed.stdout.splitlines()} == EXPORTED
    needed = subprocess.run(["readelf", "-d", cuda.library], capture_output=True, text=True, check=True).stdout
    names = {line.split("[")[1].split(".")[0] for line in needed.splitlines() if "NEEDED" in line}
    assert names <= {"libc", "libdl", "libpthread", "ld-linux-x86-64", "ld-linux-aarch64"}


@pytest.mark.parametrize("program", [["cc", "--version"], [sys.executable, "-c", "import subprocess; print(1)"]])
def test_programs_without_cuda_do_not_notice_it(cuda: Built, tmp_path: Path, program: list[str]) -> None:
    """Everything below a server is preloaded too: its compilers, its shells, its Python."""
    env = environment(cuda, tmp_path)
    env["LD_LIBRARY_PATH"] = ""
    done = subprocess.run(program, env=env, capture_output=True, text=True, check=True)
    assert (done.stderr, list(tmp_path.iterdir())) == ("", [])


def test_without_the_variable_nothing_is_caught(cuda: Built, tmp_path: Path) -> None:
    """A preloaded library alone changes nothing: no socket, no thread, CUDA's own memory."""
    with engine(cuda, tmp_path / "gpu", told=False) as program:
        program(f"alloc a {64 * MIB}")
        assert "libwarmboot_gpu.so" in Path(f"/proc/{program.pid}/maps").read_text()
        assert (len(threads(program)), physical(program), list((tmp_path / "gpu").iterdir())) == (1, 0, [])
        program("free a")


def test_a_process_without_large_allocations_has_no_socket_and_no_thread(cuda: Built, tmp_path: Path) -> None:
    """A context and small memory do not count; the first large allocation does."""
    with engine(cuda, tmp_path / "gpu") as program:
        program(f"alloc small {MIB - 1}")
        assert (len(threads(program)), list((tmp_path / "gpu").iterdir())) == (1, [])
        program(f"alloc large {MIB}")
        until(lambda: set(threads(program)) == {"engine", "warmboot-gpu"})
        assert list((tmp_path / "gpu").iterdir()) == [program.address]


def test_the_librarys_thread_takes_no_signal_and_its_socket_is_ours_alone(cuda: Built, tmp_path: Path) -> None:
    """Every signal that can be blocked is; the socket is closed to others whatever the umask; it goes at the end."""
    before = os.umask(0)
    try:
        with engine(cuda, tmp_path / "gpu") as program:
            program(f"alloc a {MIB}")
            until(lambda: "warmboot-gpu" in threads(program))
            blocked = int(threads(program)["warmboot-gpu"], 16)
            assert all(blocked >> (number - 1) & 1 for number in (1, 2, 10, 12, 15, 17))  # HUP INT USR1 USR2 TERM CHLD
            assert int(threads(program)["engine"], 16) == 0
            assert program.address.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)
    assert list((tmp_path / "gpu").iterdir()) == []


def test_the_socket_of_a_process_that_had_the_same_number_is_replaced(cuda: Built, tmp_path: Path) -> None:
    """One that was killed leaves its socket behind, and numbers come again."""
    with engine(cuda, tmp_path / "gpu") as program:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left, contextlib.chdir(program.folder):
            left.bind(program.address.name)
        program(f"alloc a {MIB}")
        assert program.done("status")["pid"] == program.pid


def test_a_folder_with_a_long_path_is_no_hindrance(cuda: Built, tmp_path: Path) -> None:
    """A socket's address has 108 bytes; a folder's path may have more."""
    folder = tmp_path / ("long" * 40)
    with engine(cuda, folder) as program:
        program(f"alloc a {MIB}")
        assert program.done("status")["allocations"] == 1
    assert list(folder.iterdir()) == []


def test_without_its_folder_the_server_runs_as_without_the_library(cuda: Built, tmp_path: Path) -> None:
    """A folder that is gone is a line on stderr, and CUDA's own memory."""
    missing = {"WARMBOOT_GPU_MEMORY": str(tmp_path / "missing")}
    with engine(cuda, tmp_path / "gpu", env=missing) as program:
        program(f"alloc a {4 * MIB}")
        program("fill a random 1")
        program("check a")
        assert (len(threads(program)), physical(program)) == (1, 0)
        words = program.log.read_text()
        assert words.startswith("warmboot-gpu: there can be no control socket in ")
        assert "No such file or directory" in words


def test_two_processes_have_a_socket_each(cuda: Built, tmp_path: Path) -> None:
    """What one of them does leaves the other as it is."""
    with engine(cuda, tmp_path / "gpu") as first, engine(cuda, tmp_path / "gpu", python=True) as second:
        for number, program in enumerate((first, second)):
            program(f"alloc a {3 * MIB}")
            program(f"fill a random {number}")
        assert set((tmp_path / "gpu").iterdir()) == {first.address, second.address}
        first.done("offload")
        assert [program.done("status")["state"] for program in (first, second)] == ["asleep", "awake"]
        second("check a")
        second.done("offload")
        first.done("reload")
        first("check a")
        second.done("reload")
        second("check a")


def test_a_fork_of_a_process_with_gpu_memory_leaves_its_parent_alone(any_cuda: Built, tmp_path: Path) -> None:
    """CUDA does not work in it, as without the library, and the parent's socket and memory stay."""
    with engine(any_cuda, tmp_path / "gpu") as program:
        program(f"alloc a {3 * MIB}")
        program("fill a random 1")
        assert program("fork") == "3"  # CUDA_ERROR_NOT_INITIALIZED
        program.done("offload")
        assert program("fork") == "3"
        program.done("reload")
        program("check a")


def test_a_fork_of_a_process_that_has_not_used_the_gpu_has_a_socket_of_its_own(cuda: Built, tmp_path: Path) -> None:
    """A worker that is forked before its parent uses CUDA is caught like any other process."""
    with engine(cuda, tmp_path / "gpu") as program:
        assert program("fork") == "0"
        (left,) = (tmp_path / "gpu").iterdir()  # the child ended without its destructors
        assert left != program.address
        assert len(threads(program)) == 1


def test_a_fork_in_the_middle_of_a_request_holds_nobody_up(cuda: Built, tmp_path: Path) -> None:
    """Who asked learns at once that the process has ended, although its fork lives on."""
    with engine(cuda, tmp_path / "gpu", env={"FAKE_CUDA_SLOW_COPY_US": "30000"}, code=-9) as program:
        program(f"alloc a {40 * MIB}")
        program("fill a random 1")
        with program.connect() as connection:
            connection.sendall(b'{"op": "offload", "threads": 2}\n')
            until(lambda: len(list(Path(f"/proc/{program.pid}/task").iterdir())) > 2)
            child = int(program("linger"))
            try:
                until(lambda: not any(name.startswith("socket:") for name in open_files(child)))
            finally:
                program.process.kill()
            assert connection.recv(1) == b""


@pytest.mark.parametrize("way", ["offload", "reload"])
def test_a_process_killed_in_the_middle_leaves_nothing_but_its_socket(cuda: Built, tmp_path: Path, way: str) -> None:
    """All of its memory is the process's own: SIGKILL takes it along."""
    with engine(cuda, tmp_path / "gpu", code=-9) as program:
        program(f"alloc a {40 * MIB}")
        program("fill a random 1")
        if way == "reload":
            program.done("offload")
        program("fault SLOW_COPY_US 30000")
        with program.connect() as connection:
            connection.sendall(f'{{"op": "{way}", "threads": 2}}\n'.encode())
            until(lambda: len(list(Path(f"/proc/{program.pid}/task").iterdir())) > 2)
            program.process.kill()
            assert connection.recv(1) == b""
        program.process.wait()
    assert list((tmp_path / "gpu").iterdir()) == [program.address]


def test_sharing_by_cuda_ipc_is_refused_with_the_remedy(cuda: Built, tmp_path: Path) -> None:
    """By both APIs, counted, and for caught memory alone."""
    with engine(cuda, tmp_path / "gpu") as program:
        program(f"alloc caught {4 * MIB}")
        program(f"alloc small {MIB - 1}")
        assert program.raw("ipc caught") == "error 801"
        assert program.raw("ipc caught driver") == "error 801"
        program("ipc small")
        program("ipc small driver")
        assert program.done("status")["ipc_refused"] == 2
        lines = program.log.read_text().splitlines()
        assert len(lines) == 2
        for line in lines:
            assert line.startswith("warmboot-gpu: ")
            assert "--disable-custom-all-reduce" in line
