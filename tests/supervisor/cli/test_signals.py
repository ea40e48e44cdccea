"""Which signals are one request to stop, and which one is the second."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from supervisor.cli import signals as signals_module
from supervisor.cli.signals import Signals


class Clock:
    """Stands in for the module `time`: the time of each signal is given by the test."""

    def __init__(self, *times_s: float) -> None:
        self._times_s = list(times_s)
        self.asked = queue.Queue[float]()

    def monotonic(self) -> float:
        """The next time of the list; the last one again and again."""
        now = self._times_s.pop(0) if len(self._times_s) > 1 else self._times_s[0]
        self.asked.put(now)
        return now


@contextmanager
def listening(seconds: queue.Queue[int]) -> Iterator[Signals]:
    """Signals of this process, heard; the handlers that were there come back."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    heard = Signals(seconds.put)
    try:
        yield heard
    finally:
        heard.close()
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_second_is_told_from_a_repeat_by_time(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever comes within a second of the first signal repeats it; what comes later is the second one."""
    clock = Clock(100.0, 100.9, 101.1)
    monkeypatch.setattr(signals_module, "time", clock)
    seconds = queue.Queue[int]()
    with listening(seconds) as heard:
        os.kill(os.getpid(), signal.SIGTERM)
        assert asyncio.run(heard.stop_requested()) == signal.SIGTERM
        os.kill(os.getpid(), number)
        while clock.asked.get(timeout=20) != 100.9:
            pass
        assert seconds.empty()
        os.kill(os.getpid(), number)
        assert seconds.get(timeout=20) == number
        clock.asked.get(timeout=20)
        assert seconds.empty()


def test_a_step_that_takes_the_wakeup_descriptor_hides_no_signal() -> None:
    """A signal is heard once the interpreter runs its handler, also where asyncio hears signals of its own."""

    async def wait(heard: Signals) -> int:
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, lambda: None)
        os.kill(os.getpid(), signal.SIGTERM)
        return await asyncio.wait_for(heard.stop_requested(), 20)

    with listening(queue.Queue()) as heard:
        assert asyncio.run(wait(heard)) == signal.SIGTERM


def test_a_signal_to_a_fork_is_no_request_to_us(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that a Step forked ends by SIGTERM, as it would without us, and stops nothing here."""
    monkeypatch.setattr(signals_module, "time", Clock(0.0))
    with listening(queue.Queue()) as heard:
        reader, writer = os.pipe()
        if (pid := os.fork()) == 0:
            os.write(writer, b"forked")
            time.sleep(60)
            os._exit(0)
        assert os.read(reader, 6) == b"forked"
        os.close(reader)
        os.close(writer)
        os.kill(pid, signal.SIGTERM)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)
        assert asyncio.run(heard.stop_requested()) == signal.SIGINT


def test_after_the_end_signals_are_ignored() -> None:
    """Once the exit code is fixed, no signal asks for anything."""
    seconds = queue.Queue[int]()
    with listening(seconds) as heard:
        heard.end()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(os.getpid(), number)
        assert {signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)} == {signal.SIG_IGN}
    assert seconds.empty()
