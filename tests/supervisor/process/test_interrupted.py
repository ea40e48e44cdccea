"""What is left of a child whose start or end was interrupted, and of one that cannot be ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import descriptors
from supervisor import Hooks, Stop, events
from supervisor import supervise as supervise_here
from supervisor.errors import DiedBeforeReady
from supervisor.linux import processes
from supervisor.linux.files import argv
from supervisor.process import guardian, process, teardown
from supervisor.process.popen import popen
from supervisor.process.process import Process
from support import Recorder, alive, fake_profile

pytestmark = pytest.mark.skipif(not processes.AVAILABLE, reason="there is no /proc here")

SLEEP = "import time; time.sleep(600)"
COOKIE = "a-cookie-of-this-test"


def start() -> Process:
    env = {processes.COOKIE: COOKIE}
    return Process.start([sys.executable, "-I", "-S", "-c", SLEEP], env=env, cwd=None)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    """What `Process.start` starts besides the guardian; ended with the test."""
    found: list[subprocess.Popen[bytes]] = []

    def noted(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        found.append(popen(*args, **options))
        return found[-1]

    monkeypatch.setattr(process, "popen", noted)
    yield found
    for one in found:
        one.kill()
        one.wait()


def interrupt(*_: object) -> None:
    """What Ctrl-C does in the midst of something."""
    raise KeyboardInterrupt


def test_an_interrupt_after_the_start_leaves_no_orphan(
    started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupt between the start of the child and the first look at it ends the child and its guardian."""
    before = descriptors()
    monkeypatch.setattr(process, "exit_fd", interrupt)
    with pytest.raises(KeyboardInterrupt):
        start()
    assert not alive(started[0].pid)
    assert descriptors() == before and not guardian._pipes


def test_an_interrupt_within_the_start_leaves_no_orphan(
    started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that runs although its start was interrupted is found by its cookie, and ended."""

    def interrupted(*args: Any, **options: Any) -> None:
        started.append(popen(*args, **options))
        raise KeyboardInterrupt

    monkeypatch.setattr(process, "popen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        start()
    assert not alive(started[0].pid)
    for pipe in (started[0].stdout, started[0].stderr):
        assert pipe
        pipe.close()


@pytest.mark.usefixtures("started")
def test_a_fork_after_an_unkillable_child_closes_nothing_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipe of a guardian that is stuck at its work is closed and forgotten: its number may be another's by now."""
    monkeypatch.setattr(guardian, "_SCRIPT", "while read -r line; do :; done; exec sleep 600")
    monkeypatch.setattr(guardian, "_STRIKE_S", 0.05)
    child = start()
    stuck = child._guardian._popen
    child.close()
    others = [os.open("/dev/null", os.O_RDONLY) for _ in range(16)]  # they get the numbers that became free
    try:
        if (fork := os.fork()) == 0:
            for fd in others:
                try:
                    os.fstat(fd)
                except OSError:
                    os._exit(1)
            os._exit(0)
        assert os.waitpid(fork, 0)[1] == 0
    finally:
        for fd in others:
            os.close(fd)
        stuck.kill()
        stuck.wait()


def marked(mark: str) -> list[int]:
    """Living processes with a word in their command line."""
    return [pid for pid in processes.pids() if mark in argv(pid) and alive(pid)]


@pytest.mark.anyio
async def test_survivors_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that no signal ends stands in the event of the teardown and in the error."""
    monkeypatch.setattr(process, "_signal_one", lambda *_: None)  # as if it were stuck in the kernel
    monkeypatch.setattr(teardown, "_KILL_WAIT_S", 0.2)
    stop = Stop(grace_s=5, drain_s=0.1)  # the survivor holds the pipes
    seen = Recorder()
    there = tmp_path / "there"
    daemon = f'setsid {sys.executable} -I -S -c \'import time; open("{there}", "w"); time.sleep(600)\''
    command = ("sh", "-c", f"{daemon} {tmp_path} & until [ -e {there} ]; do sleep 0.01; done; exit 3 # {{port}}")
    try:
        with pytest.raises(DiedBeforeReady) as caught:
            await supervise_here(fake_profile(command=command, stop=stop), Hooks(observers=(seen,)))
        (survivor,) = seen.one(events.TeardownFinished).survivors
        (left,) = marked(str(tmp_path))
        assert survivor.startswith(f"pid {left} ({sys.executable}")
        assert any(survivor in note for note in caught.value.__notes__)
    finally:
        for pid in marked(str(tmp_path)):
            os.kill(pid, signal.SIGKILL)
