"""Limits that count only time in which this process ran."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import anyio
import anyio.lowlevel
import pytest

from supervisor.timing.limits import running_limit, sleep_running
from support import ROOT


@pytest.mark.anyio
async def test_what_takes_too_long_is_cancelled() -> None:
    """The body ends when the limit has passed, not before, and the limit says that it did so."""
    began = time.monotonic()
    async with running_limit(0.2) as limit:
        await anyio.sleep_forever()
    assert limit.cancelled_caught
    assert time.monotonic() - began >= 0.2


@pytest.mark.anyio
async def test_what_is_done_in_time_is_left_alone() -> None:
    """Nothing is cancelled, and the limit is gone with the block."""
    with anyio.fail_after(20):
        async with running_limit(60) as limit:
            await anyio.lowlevel.checkpoint()
    assert not limit.cancelled_caught


@pytest.mark.anyio
@pytest.mark.parametrize("error", [ValueError("on purpose"), StopAsyncIteration(), KeyboardInterrupt()])
async def test_errors_come_out_as_they_are(error: BaseException) -> None:
    """No group around them: callers catch what the body raised."""
    with pytest.raises(type(error)) as caught:
        async with running_limit(60):
            raise error
    assert caught.value is error


@pytest.mark.anyio
async def test_a_cancellation_from_outside_goes_through() -> None:
    """Who cancels the block from outside ends it, and the limit does not claim it."""
    with anyio.CancelScope() as outer:
        async with running_limit(60) as limit:
            outer.cancel()
            await anyio.sleep_forever()
        pytest.fail("it went on")
    assert outer.cancelled_caught
    assert not limit.cancelled_caught


@pytest.mark.anyio
async def test_an_error_on_the_way_out_is_not_lost() -> None:
    """A body that raises while the limit cancels it has failed with that, as under `move_on_after`."""
    with pytest.raises(LookupError, match="on the way out"):
        async with running_limit(0.1):
            try:
                await anyio.sleep_forever()
            finally:
                raise LookupError("on the way out")


@pytest.mark.anyio
async def test_a_restart_begins_anew() -> None:
    """Work that shows itself alive in time may take longer than the limit."""
    async with running_limit(0.4) as limit:
        for _ in range(4):
            await anyio.sleep(0.2)
            limit.restart()
    assert not limit.cancelled_caught
    async with running_limit(0.1) as limit:
        limit.restart()
        await anyio.sleep_forever()
    assert limit.cancelled_caught


@pytest.mark.anyio
async def test_a_jump_of_the_clock_counts_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour that passes in a short sleep was none of ours."""
    readings = iter([0.0, 3600.0])
    # A clock for the module alone: asyncio's own must go on, however young the machine is.
    clock = SimpleNamespace(monotonic=lambda: next(readings))
    monkeypatch.setattr("supervisor.timing.limits.time", clock)
    assert await sleep_running(0.01) == pytest.approx(0.0125)


SUSPENDED = """
import sys, anyio
from supervisor.timing.limits import running_limit

async def main():
    async with running_limit(0.8) as limit:
        print("in", flush=True)
        await anyio.wait_readable(0)
    print("passed" if limit.cancelled_caught else "met")

anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_suspension_does_not_count(backend: str) -> None:
    """A process that is stopped for longer than its limit can still meet it afterwards."""
    argv = [sys.executable, "-c", SUSPENDED, backend]
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == "in\n"
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(1.2)
        os.kill(process.pid, signal.SIGCONT)
        time.sleep(0.1)  # so that a plain deadline would have been noticed first
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "met\n"
