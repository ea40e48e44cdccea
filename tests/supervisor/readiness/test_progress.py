"""Whether a load still moves: slow steady work, downloads, and the cost of our own probes."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import pytest

from supervisor import Timeouts, supervise
from supervisor.errors import LoadStalled
from supervisor.linux import processes, usage
from supervisor.readiness.progress import LoadMeter
from support import fake_profile

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not processes.AVAILABLE, reason="there is no /proc here"),
]

PACED = "import sys, time, os\nprint('begun', flush=True)\nwhile True:\n    {work}\n    time.sleep(0.05)\n"


@contextmanager
def running(work: str) -> Iterator[int]:
    """A session that does a piece of work twenty times a second; yields its number."""
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", PACED.format(work=work)], stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


def meter(session: int) -> LoadMeter:
    return LoadMeter(
        usage.Session(session),
        (),
        bytes_logged=lambda: 0,
        probes_answered=lambda: 0,
        on_progress=lambda *_: None,
    )


@pytest.mark.parametrize(
    "work",
    [
        "end = time.process_time() + 0.002\n    while time.process_time() < end: pass",
        "os.read(os.open('/dev/zero', os.O_RDONLY), 700) and os.closerange(3, 99)",
        "os.write(os.open('/dev/null', os.O_WRONLY), bytes(100_000)) and os.closerange(3, 99)",
    ],
    ids=["cpu", "reads", "writes"],
)
async def test_slow_steady_work_is_movement(work: str) -> None:
    """A few per cent of a core, some kilobytes a second, or a download: less than one sample shows, and no stall."""
    with running(work) as session, anyio.move_on_after(8) as limit:
        await meter(session).until_stalled(6)  # far longer than a busy machine may starve it
    assert limit.cancelled_caught


async def test_an_idle_session_stalls() -> None:
    """A session that does nothing is found out."""
    with running("time.sleep(1000)") as session, anyio.fail_after(10):
        await meter(session).until_stalled(1.0)


async def test_a_suspension_is_no_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that jumps, as when the whole machine was suspended, makes no stall of an idle moment."""
    clock, jumps = time.monotonic, itertools.count(0, 3600)
    monkeypatch.setattr(time, "monotonic", lambda: clock() + next(jumps))
    with running("time.sleep(1000)") as session, anyio.move_on_after(1) as limit:
        await meter(session).until_stalled(2)
    assert limit.cancelled_caught


@pytest.mark.parametrize("flag", ["--hang", "--never-ready"])
async def test_answering_probes_is_no_movement(flag: str) -> None:
    """A server that is only busy with our probes has stalled."""
    with pytest.raises(LoadStalled):
        await supervise(fake_profile(flag, timeouts=Timeouts(start_s=40, stall_s=3, probe_s=0.5)))
