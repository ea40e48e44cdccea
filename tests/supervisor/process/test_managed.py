"""A process with its pump, its watch and its teardown."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NoReturn

import anyio
import pytest

from supervisor.logs.pump import LogPump
from supervisor.process.managed import managed
from supervisor.process.process import Process
from supervisor.process.teardown import teardown
from supervisor.profile import LogLimits, Stop
from supervisor.redact import Redactor
from support import alive

pytestmark = pytest.mark.anyio


# A pump that is broken drains nothing, however long one waits.
UNDRAINED = Stop(grace_s=0.5, drain_s=0.1)


class Managed:
    """A Python program, managed; `lines` are those of its output."""

    def __init__(self, program: str = "print('hello', flush=True); import time; time.sleep(60)") -> None:
        self.process = Process.start((sys.executable, "-c", program), env={}, cwd=None)
        self.lines: list[str] = []
        self.heard = anyio.Event()
        self.ends: list[Exception | None] = []
        self.on_end: Callable[[], Any] = lambda: None
        self.stop = Stop(grace_s=0.5)
        fds: dict[Any, int] = {"stdout": self.process.stdout_fd, "stderr": self.process.stderr_fd}
        self.pump = LogPump(fds, LogLimits(), Redactor(()), on_line=self._keep, on_dropped=lambda *_: None)

    def _keep(self, _stream: str, _level: str, line: str) -> None:
        self.lines.append(line)
        self.heard.set()

    async def end(self, error: Exception | None) -> None:
        self.ends.append(error)
        self.on_end()
        await teardown(self.process, self.pump, self.stop, port=0)


async def test_the_block_ends_the_process() -> None:
    """Output is drained while it lasts; afterwards the process is gone."""
    it = Managed()
    async with managed(it.process, it.pump, it.end):
        await it.heard.wait()
    assert it.lines == ["hello"]
    assert it.ends == [None]
    assert not alive(it.process.pid)


async def test_the_exit_is_watched() -> None:
    """A process that ends by itself sets `exited`, and the last of its output has been seen."""
    it = Managed("print('bye')")
    async with managed(it.process, it.pump, it.end):
        await it.process.exited.wait()
    assert it.lines == ["bye"]
    assert it.process.report is not None
    assert it.process.report.exit_code == 0


async def test_an_error_of_the_block_is_raised_as_it_is() -> None:
    """After the teardown, which has seen it."""
    it, error = Managed(), ValueError("on purpose")
    with pytest.raises(ValueError, match="on purpose") as caught:
        async with managed(it.process, it.pump, it.end):
            raise error
    assert caught.value is error
    assert it.ends == [error]


async def test_cancellation_is_the_request_to_end() -> None:
    """The teardown runs to its end, with no error to see, and the cancellation goes on."""
    it = Managed()
    with anyio.CancelScope() as scope:
        async with managed(it.process, it.pump, it.end):
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert it.ends == [None]
    assert not alive(it.process.pid)


async def test_a_cancellation_during_the_teardown_hides_no_error() -> None:
    """The error that came first is what is raised."""
    it = Managed()
    with anyio.CancelScope() as scope, pytest.raises(ValueError, match="on purpose"):
        it.on_end = scope.cancel
        async with managed(it.process, it.pump, it.end):
            raise ValueError("on purpose")


@pytest.mark.parametrize("broken", ["run", "watch"])
async def test_a_broken_pump_or_watch_ends_the_block(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is cancelled, and the defect is raised, in no group; the other one goes on for the teardown."""

    async def fails(_: object) -> NoReturn:
        raise ExceptionGroup("of a task group", [ZeroDivisionError("a defect")])

    monkeypatch.setattr(LogPump if broken == "run" else Process, broken, fails)
    it = Managed()
    it.stop = UNDRAINED
    with anyio.fail_after(20), pytest.raises(ZeroDivisionError, match="a defect"):
        async with managed(it.process, it.pump, it.end):
            await anyio.sleep_forever()
    assert [type(error) for error in it.ends] == [ZeroDivisionError]
    assert not alive(it.process.pid)


async def test_a_pump_that_breaks_during_a_stop_is_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A requested stop does not hide it."""
    breaks = anyio.Event()

    async def fails(_: object) -> NoReturn:
        await breaks.wait()
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(LogPump, "run", fails)
    it = Managed()
    it.on_end, it.stop = breaks.set, UNDRAINED
    with anyio.CancelScope() as scope, pytest.raises(ZeroDivisionError, match="a defect"):
        async with managed(it.process, it.pump, it.end):
            scope.cancel()
            await anyio.sleep_forever()
    assert it.ends == [None]
