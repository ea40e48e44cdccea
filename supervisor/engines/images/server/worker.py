"""The one thread in which the pipeline lives: what holds a device's state stays in the thread that made it."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["Worker"]

T = TypeVar("T")


class Worker:
    """Runs functions one after the other in a thread of its own, which does not keep the process from ending."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="pipeline", daemon=True).start()

    def submit(self, function: Callable[[], T]) -> asyncio.Future[T]:
        """Have a function called; cancelling the future does not stop it."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def settle(result: T | None, error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)  # type: ignore[arg-type]  # no error: it is there
            else:
                future.set_exception(error)

        def job() -> None:
            outcome: tuple[Any, BaseException | None]
            try:
                outcome = (function(), None)
            except BaseException as error:  # noqa: BLE001  # whatever it is, somebody waits for it
                if isinstance(error, StopIteration) or not isinstance(error, Exception):
                    # A future takes no StopIteration, and a Rust panic (pyo3) is no Exception.
                    cause, error = error, RuntimeError(f"{type(error).__name__}: {error}")
                    error.__cause__ = cause
                outcome = (None, error)
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
                loop.call_soon_threadsafe(settle, *outcome)

        self._jobs.put(job)
        return future

    def _work(self) -> None:
        while True:
            self._jobs.get()()
