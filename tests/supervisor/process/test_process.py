"""The child process itself: the guardian, the exit report, the fallback without pidfd."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import anyio
import pytest

from conftest import descriptors
from supervisor.errors import SpawnError
from supervisor.process.exits import ExitReport
from supervisor.process.process import Process
from support import FAKE, alive

ENV = dict(os.environ)

HOST = """
import anyio, os, sys
from supervisor import Hooks, Profile, supervise

async def main():
    async with anyio.create_task_group() as tasks:
        profile = Profile(name="x", command=tuple(sys.argv[1:]))
        server = await tasks.start(supervise, profile)
        print(server.pid, flush=True)

anyio.run(main)
"""


@pytest.mark.parametrize("wrapped", [False, True], ids=["direct", "behind a shell"])
def test_a_killed_supervisor_leaves_no_server(wrapped: bool, tmp_path: Path) -> None:
    """SIGKILL to the supervisor ends the server as well, also one behind a wrapper, and the guardian."""
    server = [sys.executable, "-I", "-S", str(FAKE), "--port", "{port}", "--ignore-sigterm"]
    command = ["/bin/sh", "-c", " ".join(server) + " & wait"] if wrapped else server
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, *command], stdout=subprocess.PIPE, cwd=tmp_path.parent, env=ENV
    )
    assert host.stdout
    leader = int(host.stdout.readline())
    group = _members(leader)
    guardian = [pid for pid in _children_of(host.pid) if pid != leader]
    assert group
    assert len(guardian) == 1
    host.kill()
    host.wait()
    host.stdout.close()
    _until_gone([*group, *guardian])


def _members(group: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group:
                found.append(int(entry.name))
    return found


def _children_of(pid: int) -> list[int]:
    return [int(c) for task in Path(f"/proc/{pid}/task").iterdir() for c in (task / "children").read_text().split()]


FORKING_HOST = HOST.replace(
    "print(server.pid, flush=True)",
    """
        import multiprocessing, signal, warnings
        warnings.simplefilter("ignore")
        worker = multiprocessing.get_context("fork").Process(target=signal.pause, daemon=True)
        worker.start()
        print(server.pid, worker.pid, flush=True)""",
)


def test_a_fork_of_the_host_does_not_keep_the_server(tmp_path: Path) -> None:
    """A worker that the host forked holds nothing that would hide the host's death from the guardian."""
    server = [sys.executable, "-I", "-S", str(FAKE), "--port", "{port}"]
    argv = [sys.executable, "-c", FORKING_HOST, *server]
    host = subprocess.Popen(argv, stdout=subprocess.PIPE, cwd=tmp_path, env=ENV)
    assert host.stdout
    leader, worker = map(int, host.stdout.readline().split())
    try:
        host.kill()
        host.wait()
        host.stdout.close()
        _until_gone([leader])
        assert alive(worker)
    finally:
        os.kill(worker, signal.SIGKILL)
        _until_gone([worker])


@pytest.mark.anyio
async def test_a_child_that_somebody_else_reaps_has_ended() -> None:
    """Where SIGCHLD is ignored nobody learns the exit code; the end itself is still seen, and nothing hangs."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        report = await _run("raise SystemExit(7)")
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert (report.exit_code, report.signal) == (None, None)


@pytest.mark.parametrize(("argv", "cwd"), [(["/bin/true", "a\0b"], None), (["/bin/true"], Path("a\0b"))])
def test_what_cannot_be_passed_on_is_an_error_that_leaves_nothing(argv: list[str], cwd: Path | None) -> None:
    """A NUL where none may stand is a SpawnError; the guardian that was started first is gone."""
    before = len(os.listdir("/dev/fd"))
    with pytest.raises(SpawnError, match="null"):
        Process.start(argv, env=ENV, cwd=cwd)
    assert len(os.listdir("/dev/fd")) == before


def _until_gone(pids: list[int], limit_s: float = 10) -> None:
    ends = time.monotonic() + limit_s
    while any(map(alive, pids)):
        assert time.monotonic() < ends, f"still alive: {[pid for pid in pids if alive(pid)]}"
        time.sleep(0.005)


async def _run(code: str) -> ExitReport:
    child = Process.start([sys.executable, "-I", "-S", "-c", code], env=ENV, cwd=None)
    with anyio.fail_after(20):
        await child.watch()
    assert child.report
    child.close()
    return child.report


@pytest.mark.anyio
@pytest.mark.parametrize("pidfd", [True, False])
async def test_code_and_signal_apart(pidfd: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exit code and a signal are told apart, by name, also real-time signals; with a pidfd and without."""
    if not pidfd:
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    report = await _run("raise SystemExit(7)")
    assert (report.exit_code, report.signal) == (7, None)
    report = await _run("import os; os.kill(os.getpid(), 15)")
    assert (report.exit_code, report.signal) == (None, "SIGTERM")
    report = await _run("import os; os.kill(os.getpid(), 40)")
    assert (report.exit_code, report.signal) == (None, "signal 40")
    _until_no_waiters()


def test_without_pidfd_and_threads_nothing_is_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """When the end could not be seen, the command is not left running, and the error says why."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.delattr(os, "pidfd_open", raising=False)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    before = descriptors()
    argv = ["/bin/sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 60"]
    with pytest.raises(SpawnError, match="can't start new thread"):
        Process.start(argv, env=ENV, cwd=None)
    assert not (tmp_path / "pid").exists() or not alive(int((tmp_path / "pid").read_text() or 0))
    assert descriptors() == before


def _until_no_waiters() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("wait-"):
            thread.join(5)
            assert not thread.is_alive()


@pytest.mark.anyio
async def test_the_group_number_stays_taken_until_close() -> None:
    """An ended child is a zombie until `close`, so its group number cannot be reused under our signals."""
    child = Process.start(["/bin/true"], env=ENV, cwd=None)
    with anyio.fail_after(20):
        await child.watch()
    assert Path(f"/proc/{child.pid}").exists()
    child.signal_all(signal.SIGKILL, {})
    child.close()
    assert not Path(f"/proc/{child.pid}").exists()


@pytest.mark.anyio
async def test_the_child_has_a_session_of_its_own() -> None:
    """The child leads its session and group, has no terminal input, and gets only the environment it was given."""
    code = "import os; print(os.getsid(0) == os.getpgid(0) == os.getpid(), os.read(0, 1), sorted(os.environ))"
    child = Process.start([sys.executable, "-I", "-S", "-c", code], env={"ONLY": "this"}, cwd=Path("/"))
    with anyio.fail_after(20):
        await child.watch()
    said = os.read(child.stdout_fd, 1000).decode()
    child.close()
    assert said.startswith("True b''")
    assert "ONLY" in said
    assert "HOME" not in said


def test_out_of_descriptors_is_an_error_that_leaves_nothing() -> None:
    """With no descriptors left the start fails with the system's reason; no process and no descriptor stays."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = len(os.listdir("/dev/fd"))
    try:
        for spare in range(2, 14):  # wherever in the start it happens
            resource.setrlimit(resource.RLIMIT_NOFILE, (before + spare, hard))
            try:
                child = Process.start(["/bin/true"], env=ENV, cwd=None)
            except SpawnError as error:
                assert "Too many open files" in str(error)  # noqa: PT017  it may also succeed
            else:
                while not child.note_exit():
                    time.sleep(0.001)
                child.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(os.listdir("/dev/fd")) == before


@pytest.mark.anyio
async def test_a_child_that_was_not_torn_down_is_left_to_the_guardian() -> None:
    """Closing a process that still runs, because an interrupt broke its teardown, does not leave it running."""
    child = Process.start(["sleep", "600"], env=ENV, cwd=None)
    child.close()
    assert not alive(child.pid)
