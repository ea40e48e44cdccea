"""systemd's readiness protocol (sd_notify(3)): READY, STATUS, STOPPING, WATCHDOG, EXTEND_TIMEOUT_USEC."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from typing import Final

import anyio

from supervisor import events
from supervisor.events import Event

# TimeoutStartSec would end a load that takes longer. Our own limits (`start_s`, `stall_s`) end one that is stuck, and
# when this process hangs, no more extensions come.
_EXTEND_EVERY_S: Final = 1.0
_EXTENSION_S: Final = 30.0


class Notifier:
    """An observer that tells systemd; does nothing where `NOTIFY_SOCKET` is not set."""

    def __init__(self) -> None:
        self._address = re.sub("^@", "\0", os.environ.get("NOTIFY_SOCKET", ""))  # @: Linux's abstract namespace
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if self._address else None
        if self._socket is not None:
            self._socket.setblocking(False)
        self._starting = True

    def __call__(self, event: Event) -> None:
        """Sends what the event means to systemd."""
        match event:
            case events.LoadProgress() if event.total_bytes:
                self.send(f"STATUS=loading, {event.bytes / event.total_bytes:.0%}")
            case events.ChildSpawned():
                self.send(f"STATUS=loading, pid {event.pid}")
            case events.ChildReady():
                self._starting = False
                self.send(f"READY=1\nSTATUS=serving at {event.url}")
            case events.ChildRestarting():
                self.send(f"STATUS=restarting, attempt {event.attempt}")
            case events.Stopping() if event.asked:
                self.send("STOPPING=1\nSTATUS=stopping")

    def send(self, message: str) -> None:
        """Sends one datagram; a full or missing socket is not our failure."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendto(message.encode(), self._address)

    async def extend_start(self) -> None:
        """Asks for more time to start, again and again, until the first READY; returns then.

        Not later: while a service runs, the same message would extend RuntimeMaxSec.
        """
        while self._starting and self._socket is not None:
            self.send(f"EXTEND_TIMEOUT_USEC={_EXTENSION_S * 1e6:.0f}")
            await anyio.sleep(_EXTEND_EVERY_S)

    async def ping(self) -> None:
        """Sends WATCHDOG=1 at half of `WATCHDOG_USEC` until cancelled; returns at once where none is wanted."""
        wanted = os.environ.get("WATCHDOG_USEC", "")
        ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        period_s = int(wanted) / 2_000_000 if wanted.isdigit() and ours and self._socket else 0
        while period_s:
            self.send("WATCHDOG=1")
            await anyio.sleep(period_s)

    def close(self) -> None:
        """Closes the socket."""
        if self._socket is not None:
            self._socket.close()
