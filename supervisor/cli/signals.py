"""Requests to stop, from the operating system."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Final

import anyio

__all__ = ["Signals"]

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Signals:
    """Requests to stop, as bytes of a pipe; what is ignored already (`nohup`) stays ignored.

    Not anyio's receiver: that restores the defaults when it closes, and a signal between then and the exit would change
    the exit code of a supervision that has ended.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        for end in (self._reader, self._writer):
            os.set_blocking(end, False)
        self._heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self.ended = False
        for number in self._heard:
            signal.signal(number, self._note)

    def _note(self, number: int, _: object) -> None:
        with contextlib.suppress(BlockingIOError):  # thousands wait there already
            os.write(self._writer, bytes([number]))

    async def next(self) -> int:
        """Waits for a signal; returns its number."""
        while True:
            await anyio.wait_readable(self._reader)
            with contextlib.suppress(BlockingIOError):
                return os.read(self._reader, 1)[0]

    def end(self) -> None:
        """The end has come, with its exit code: until the process exits, no signal changes that any more."""
        self.ended = True
        for number in self._heard:
            signal.signal(number, signal.SIG_IGN)

    def close(self) -> None:
        """Ends the listening and closes the pipe."""
        self.end()
        os.close(self._reader)
        os.close(self._writer)
