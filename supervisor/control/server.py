"""The supervisor's end: answers requests for as long as the supervision lasts, and never gets in its way.

While a server is sealed a snapshot may be taken: nothing here sets a timer then, reading from a silent client included.
"""

from __future__ import annotations

import os
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import anyio

from supervisor.control import folder, messages
from supervisor.control.messages import Refusal
from supervisor.errors import SupervisorError

if TYPE_CHECKING:
    from supervisor.control.subject import Subject

__all__ = ["serve"]

_LONGEST_REQUEST: Final = 4096
_MOST_CLIENTS: Final = 32  # at once; each may be silent for as long as it likes
_SHORTAGE_S: Final = 1.0
_UCRED: Final = "iII"  # struct ucred of unix(7): pid, uid, gid


async def serve(subject: Subject) -> None:
    """Listens for commands until cancelled. Never raises: what prevents it is a notice, and the server runs without."""
    try:
        listening = folder.listening()
    except Exception as error:  # noqa: BLE001  whatever it is, the server starts
        subject.notice(f"`supervise sleep` and `wake` will not find this server: {error}")
        return
    try:
        await _accept(listening.socket, subject)
    except Exception as error:  # noqa: BLE001  whatever it is, the supervision goes on
        subject.notice(f"`supervise sleep` and `wake` no longer find this server: {type(error).__name__}: {error}")
    finally:
        listening.close()


async def _accept(listener: socket.socket, subject: Subject) -> None:
    clients = 0

    async def attend(connection: socket.socket) -> None:
        nonlocal clients
        try:
            with connection:
                await _talk(connection, subject)
        finally:
            clients -= 1

    async with anyio.create_task_group() as tasks:
        while True:
            await anyio.wait_readable(listener)
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue
            except OSError:  # no descriptors; a snapshot may catch this timer, for it decides nothing
                await anyio.sleep(_SHORTAGE_S)
                continue
            connection.setblocking(False)
            if clients >= _MOST_CLIENTS:
                with connection:
                    _send(connection, Refusal(error="Busy", detail=f"{clients} other clients are connected").line)
                continue
            clients += 1
            tasks.start_soon(attend, connection)


async def _talk(connection: socket.socket, subject: Subject) -> None:
    """Reads one request and answers it. What the client does meanwhile, its end included, changes nothing."""
    try:
        _require_ours(connection)
        if not (line := await _line(connection)):
            return
        operation = messages.operation_in(line)
        if operation == "state":
            answer = messages.answer(subject.status)
        else:
            # Shielded, so that a stop of the supervision answers too: it ends every transition that is under way.
            with anyio.CancelScope(shield=True):
                answer = messages.answer(await subject.make(operation))
    except Refusal as refusal:
        answer = refusal.line
    except SupervisorError as error:
        detail = subject.masked("\n".join([error.summary, *getattr(error, "__notes__", ())]))
        answer = Refusal(error=type(error).__name__, detail=detail, exit_status=error.cli_status).line
    except OSError:
        return  # the client is gone
    except Exception as error:  # noqa: BLE001  a defect of ours must not end the supervision
        answer = Refusal(error=type(error).__name__, detail=f"a defect of supervise: {type(error).__name__}").line
    _send(connection, answer)


async def _line(connection: socket.socket) -> bytes:
    """The first line that the client sends; empty if it sent none."""
    data = b""
    while b"\n" not in data:
        await anyio.wait_readable(connection)
        try:
            part = connection.recv(_LONGEST_REQUEST)
        except BlockingIOError:
            continue
        if not part:
            break
        data += part
        if len(data) > _LONGEST_REQUEST:
            raise Refusal(error="BadRequest", detail=f"a request has {_LONGEST_REQUEST} bytes at most", exit_status=2)
    return data.partition(b"\n")[0]


def _send(connection: socket.socket, answer: bytes) -> None:
    with suppress(OSError):  # the client is gone
        connection.send(answer)


def _require_ours(connection: socket.socket) -> None:
    """Raises Refusal unless the client is this user's, or root's."""
    seen = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(_UCRED))
    _, uid, _ = struct.unpack(_UCRED, seen)
    if uid not in (os.geteuid(), 0):
        detail = f"user {uid} may not control the servers of user {os.geteuid()}"
        raise Refusal(error="NotAllowed", detail=detail, exit_status=2)
