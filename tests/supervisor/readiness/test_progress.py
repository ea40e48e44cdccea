"""Whether a load still moves: slow steady work, downloads, and the cost of our own probes."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from supervisor import Timeouts, supervise
from supervisor.errors import LoadStalled
from supervisor.linux import processes, usage
from supervisor.readiness.progress import LoadMeter
from support import fake_profile, until_async

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


IMPORTS_THEN_WEIGHTS = """
import sys
libraries = open("/dev/zero", "rb", buffering=0)
for _ in range(20):
    libraries.read(1 << 20)
print("imported", flush=True)
for line in sys.stdin:
    if line == "open\\n":
        weights = open(sys.argv[1], "rb", buffering=0)
    else:
        weights.read(int(line))
    print("done", flush=True)
"""


@contextmanager
def importing(weights: Path) -> Iterator[tuple[int, Callable[[str], None]]]:
    """A session that has read 20 MiB of what is no weights; yields its number, and what tells it to go on."""
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", IMPORTS_THEN_WEIGHTS, weights],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    ) as process:
        stdin, stdout = process.stdin, process.stdout
        assert stdin
        assert stdout

        def tell(line: str) -> None:
            stdin.write(f"{line}\n")
            stdin.flush()
            assert stdout.readline() == "done\n"

        try:
            assert stdout.readline() == "imported\n"
            yield process.pid, tell
        finally:
            process.kill()


async def test_reads_before_the_weights_are_opened_are_not_weights(tmp_path: Path) -> None:
    """What a server of Python imports first moves no progress; its weights do, from the moment it opens them."""
    total, half = 8 << 20, 4 << 20
    (weights := tmp_path / "model").write_bytes(bytes(total))
    reports: list[int] = []
    looks: list[usage.Usage | None] = []

    class Counted(usage.Session):
        def usage(self, *, waits: bool = False) -> usage.Usage | None:
            looks.append(super().usage(waits=waits))
            return looks[-1]

    async def two_looks() -> None:
        wanted = len(looks) + 3  # the first may be under way
        await until_async(lambda: len(looks) >= wanted, "two more looks")

    with importing(weights) as (session, tell):
        meter = LoadMeter(
            Counted(session),
            (weights,),
            bytes_logged=lambda: 0,
            probes_answered=lambda: 0,
            on_progress=lambda done, *_: reports.append(done),
        )
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(meter.until_stalled, 60)
            await two_looks()
            assert not reports
            tell("open")
            await two_looks()
            tell(str(half))
            await until_async(lambda: reports, "a report")
            assert half <= reports[-1] < half + (1 << 16)
            tell(str(half))
            await until_async(lambda: reports[-1] == total, "everything")
            tasks.cancel_scope.cancel()


async def test_weights_that_nobody_was_seen_to_open_were_read_all_the_same(tmp_path: Path) -> None:
    """A small file is read between two samples: at the end of the load it counts."""
    (weights := tmp_path / "model").write_bytes(bytes(1 << 16))
    reports: list[int] = []
    with running("os.read(os.open('/dev/zero', os.O_RDONLY), 70000) and os.closerange(3, 99)") as session:
        seen = LoadMeter(
            usage.Session(session),
            (weights,),
            bytes_logged=lambda: 0,
            probes_answered=lambda: 0,
            on_progress=lambda done, *_: reports.append(done),
        )
        await until_async(lambda: (now := usage.Session(session).usage()) and now.bytes_read > 1 << 17, "some reads")
        await seen.finish()
    assert reports == [1 << 16]
