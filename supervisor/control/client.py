"""The command's end: which supervisors run here for this user, and a request to one of them."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from supervisor.control import folder, messages
from supervisor.control.messages import Refusal, Status

if TYPE_CHECKING:
    from supervisor.control.messages import Operation

__all__ = ["Found", "ask", "running"]

_ANSWERS_WITHIN_S: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A supervisor that runs.

    Attributes:
        socket: where it listens.
        supervisor_pid: by the name of its socket.
        status: what it says; None: it does not answer, because it is suspended or a Step blocks its loop.
    """

    socket: Path
    supervisor_pid: int
    status: Status | None

    def __str__(self) -> str:
        return str(self.status) if self.status else f"supervisor {self.supervisor_pid} (does not answer)"


def running(*, timeout_s: float = _ANSWERS_WITHIN_S) -> tuple[Found, ...]:
    """Find the supervisors of this user, by asking each for its state; for all of them `timeout_s` at most.

    Folders and sockets that are not ours alone, or that nobody listens at, are left aside.
    """
    asked: list[tuple[Path, socket.socket | None]] = []
    ends_at = time.monotonic() + timeout_s
    with ExitStack() as stack:
        for place in folder.candidates():
            try:
                descriptor = stack.enter_context(folder.opened(place))
                names = folder.sockets(descriptor)
            except OSError:
                continue
            for name in names:
                try:
                    connection = stack.enter_context(folder.connect(descriptor, name))
                    connection.send(messages.request("state"))
                except BlockingIOError:
                    asked.append((place / name, None))
                except OSError:
                    continue
                else:
                    asked.append((place / name, connection))
        return tuple(
            Found(socket=path, supervisor_pid=folder.pid_of(path.name), status=_status(connection, ends_at))
            for path, connection in asked
        )


def _status(connection: socket.socket | None, ends_at: float) -> Status | None:
    if connection is None:
        return None
    try:
        return messages.status_in(messages.reading(_answer(connection, ends_at)))
    except (OSError, Refusal):
        return None


def ask(path: Path, operation: Operation) -> dict[str, Any]:
    """Ask a supervisor for something and wait until it is done, for as long as that takes.

    Raises:
        Refusal: it did not work, or the supervisor ended meanwhile.
        OSError: nobody listens there any more.
    """
    with folder.opened(path.parent) as descriptor, folder.connect(descriptor, path.name, wait=True) as connection:
        with suppress(BrokenPipeError):  # it has answered already: it refuses whatever we ask
            connection.sendall(messages.request(operation))
        return messages.reading(_answer(connection, None))


def _answer(connection: socket.socket, ends_at: float | None) -> bytes:
    data = b""
    while not data.endswith(b"\n") and len(data) < messages.LONGEST:
        if ends_at is not None:
            connection.settimeout(max(ends_at - time.monotonic(), 0.001))
        part = connection.recv(messages.LONGEST)
        if not part:
            break
        data += part
    return data
