"""What the processes of a child use, as the watchdog and the load's progress see it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from supervisor.linux import processes, usage
from support import until

pytestmark = pytest.mark.skipif(not processes.AVAILABLE, reason="there is no /proc here")

BUSY = [sys.executable, "-I", "-S", "-c", "import threading\nwhile True: pass"]


@pytest.fixture
def started() -> Iterator[ExitStack]:
    """Ends the processes of a test, in reverse order."""
    with ExitStack() as stack:
        yield stack


def start(started: ExitStack) -> int:
    """A process in a session of its own that computes for ever, on the core of the caller."""
    busy = subprocess.Popen(BUSY, start_new_session=True)
    started.callback(busy.wait)
    started.callback(busy.kill)
    return busy.pid


def test_a_scan_takes_no_cpu_time_from_the_count(started: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a member computes while all of /proc is read counts: else a server that works could look idle."""
    pid = start(started)
    seen: list[float] = []

    def slow(session: int, cookie: str | None) -> list[processes.Stat]:
        found = processes.living(session, cookie)

        def cpu_s() -> float:
            now = processes.stat(pid)
            return now.cpu_s if now else 0.0

        first = cpu_s()
        until(lambda: cpu_s() > first)
        seen.append(cpu_s())
        return found

    monkeypatch.setattr(usage, "living", slow)
    found = usage.Session(pid).usage()
    assert found and found.cpu_s >= seen[0]


@pytest.mark.skipif(not os.path.exists("/proc/self/schedstat"), reason="the kernel does not count waits")  # noqa: PTH110
def test_the_wait_for_a_core_is_counted(started: ExitStack) -> None:
    """A process that shares its core waits for it half of the time, which tells it from one that sleeps."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        first, _ = start(started), start(started)
    finally:
        os.sched_setaffinity(0, cores)
    session = usage.Session(first)

    def waited_s() -> float:
        found = session.usage(waits=True)
        return found.waited_s if found else 0.0

    before = waited_s()
    until(lambda: waited_s() - before > 0.1)
    found = session.usage()
    assert found and found.waited_s == 0.0


def test_reads_behind_page_faults_are_movement(monkeypatch: pytest.MonkeyPatch) -> None:
    """What page faults fetched first (the program itself, a mapping) does not hide that read(2) goes on, slowly."""
    counts = {"rchar": 20_000, "read_bytes": 500_000, "wchar": 6, "write_bytes": 0}

    class Io:
        def __init__(self, _: str) -> None: ...

        def read_text(self) -> str:
            return "".join(f"{name}: {count}\n" for name, count in counts.items())

    session = usage.Session(os.getsid(0))
    monkeypatch.setattr(usage, "Path", Io)
    monkeypatch.setattr(usage, "living", lambda *_: [processes.stat(os.getpid())])
    before = session.usage()
    counts["rchar"] += 7000
    after = session.usage()
    assert before and after
    assert (before.bytes_read, after.bytes_read) == (500_000, 500_000)
    assert after.bytes_moved - before.bytes_moved == 7000
