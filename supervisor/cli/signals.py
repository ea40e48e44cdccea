"""Requests to stop, from the operating system."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from typing import Final

import anyio

from supervisor.linux.exhaustion import detect

__all__ = ["Signals"]

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
ASKS: Final = (signal.SIGUSR1, signal.SIGUSR2)
# GNU timeout signals its child and then its group, a terminal that closes sends HUP and TERM: one request to stop.
_SAME_REQUEST_S: Final = 1.0
_LEND_S: Final = 0.05  # to our thread, at each repeated signal
_CLOSE: Final = b"\0"


class Signals:
    """Hears SIGTERM, SIGINT and SIGHUP, also while the event loop is blocked; what is ignored already stays ignored.

    With `asks` it hears SIGUSR1 and SIGUSR2 too, which ask for something else than a stop (`next_ask`).

    The first signal asks for a stop (`stop_requested`). What follows within a second of it is the same request; a
    later signal calls `on_second` on a thread of ours, which ends the process: a Step that blocks the loop, or a child
    in a long grace period, holds up nobody.

    Not anyio's receiver: that needs a loop that runs, and it restores the defaults when it closes, so that a signal
    between then and the exit would change the exit code of a supervision that has ended.

    Raises:
        OutOfResources: there is no thread to be had.
    """

    def __init__(self, on_second: Callable[[int], None], *, asks: bool = False) -> None:
        self._on_second = on_second
        self._lock = threading.Lock()
        self._ended = False
        self._first_at: float | None = None
        self._acting = False  # on a second signal, which ends the process
        self._heard_fd, self._wakeup_fd = os.pipe()
        self._stop_fd, self._asked_fd = os.pipe()
        self._ask_fd, self._passed_fd = os.pipe()
        os.set_blocking(self._wakeup_fd, False)
        os.set_blocking(self._passed_fd, False)
        self._thread = threading.Thread(target=self._listen, name="warmboot-signals", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            self._close_pipes()
            if exhausted := detect(error):
                raise exhausted from error
            raise
        wanted = (*_SIGNALS, *ASKS) if asks else _SIGNALS
        self._numbers = [number for number in wanted if signal.getsignal(number) is not signal.SIG_IGN]
        for number in self._numbers:
            signal.signal(number, self._note)
        # The interpreter writes the number there from its C handler, whatever the main thread is doing.
        signal.set_wakeup_fd(self._wakeup_fd, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=self._forget)

    async def stop_requested(self) -> int:
        """Waits for the first signal and returns its number."""
        await anyio.wait_readable(self._stop_fd)
        return os.read(self._stop_fd, 1)[0]

    async def next_ask(self) -> int:
        """Waits for the next SIGUSR1 or SIGUSR2 and returns its number. Sets no timer."""
        await anyio.wait_readable(self._ask_fd)
        return os.read(self._ask_fd, 1)[0]

    def end(self) -> None:
        """Fixes the exit code: until the process exits, no signal changes anything any more.

        Call it on the main thread. Does not return when a second signal is ending the process already.
        """
        with self._lock:
            self._ended = True
        for number in self._numbers:
            signal.signal(number, signal.SIG_IGN)

    def close(self) -> None:
        """Stops listening and releases the thread and its pipes."""
        self.end()
        signal.set_wakeup_fd(-1)
        os.write(self._wakeup_fd, _CLOSE)
        self._thread.join()
        self._close_pipes()

    def _close_pipes(self) -> None:
        for fd in (
            *(self._heard_fd, self._wakeup_fd, self._stop_fd, self._asked_fd),
            *(self._ask_fd, self._passed_fd),
        ):
            os.close(fd)

    def _listen(self) -> None:
        while True:
            heard = os.read(self._heard_fd, 4096)
            if _CLOSE in heard:
                return
            with contextlib.suppress(BlockingIOError):  # thousands wait there already
                os.write(self._passed_fd, bytes(number for number in heard if number in ASKS))
            numbers = [number for number in heard if number in _SIGNALS]
            if not numbers:
                continue
            if self._first_at is None:
                self._first_at = time.monotonic()
                os.write(self._asked_fd, bytes(numbers[:1]))
            elif time.monotonic() - self._first_at >= _SAME_REQUEST_S:
                with self._lock:
                    if not self._ended:
                        self._acting = True
                        self._on_second(numbers[0])
                        self._acting = False

    def _note(self, number: int, _: object) -> None:
        # A Step that calls asyncio's `add_signal_handler` takes the wake-up descriptor: then nobody has heard yet.
        if (holder := signal.set_wakeup_fd(self._wakeup_fd, warn_on_full_buffer=False)) != self._wakeup_fd:
            signal.set_wakeup_fd(holder)
            with contextlib.suppress(BlockingIOError):  # thousands wait there already
                os.write(self._wakeup_fd, bytes([number]))
        # A Step that computes in C (`re` does, and yet runs handlers) would not let the thread have the interpreter:
        # waiting here does, for a moment, and for as long as a second signal takes.
        # No Event: its lock may be held by the very frame that this handler has interrupted.
        if self._first_at is not None:
            select.select((), (), (), _LEND_S)
        while self._acting:
            select.select((), (), (), _LEND_S)

    def _forget(self) -> None:
        # In a fork of ours, a worker of multiprocessing for example: its signals are not requests to us.
        if not self._ended:
            signal.set_wakeup_fd(-1)
            for number in self._numbers:
                signal.signal(number, signal.SIG_DFL)
