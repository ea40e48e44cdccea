"""Asking the library in one process: a JSON line over its Unix socket, a JSON line back, as types."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import anyio

from hooks.sleep.offload.answers import Answer, Device, Moved, Phase, Status, read_moved, read_status, shown
from hooks.sleep.offload.errors import Unreachable, Unreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["Device", "Moved", "Phase", "Status", "Zeros", "offload", "reload", "status"]

Zeros = Literal["gpu", "host", "none"]

_MOST_BYTES: Final = 1 << 20  # of an answer; one of a process on eight GPUs has about 2 KB
_PATH_BYTES: Final = 107  # of a Unix socket's path, without the NUL at its end: unix(7)
_T = TypeVar("_T")


async def status(socket: Path) -> Status:
    """Ask what the library in a process holds.

    Args:
        socket: the process's, `<pid>.sock` in the folder.

    Raises:
        GpuMemoryError: it cannot be asked, or does not say.
    """
    return await _ask(socket, "status", {}, read_status)


async def offload(
    socket: Path,
    *,
    threads: int = 0,
    verify: bool = True,
    idle_s: float = 30.0,
    chunk_bytes: int | None = None,
    zeros: Zeros | None = None,
) -> Moved:
    """Put the GPU memory of a process aside. After an error the process is awake and whole.

    A cancellation closes the connection; the process may go on, so ask it for a reload then.

    Args:
        socket: the process's, `<pid>.sock` in the folder.
        threads: that copy, for each GPU; 0: as many as there are processors, from 2 to 16.
        verify: checksum every byte, so that the reload can verify it.
        idle_s: how long work that is on the GPU may take.
        chunk_bytes: of a piece that has one checksum; None: the library's own choice.
        zeros: who looks for pieces that are all zeros; None: the GPU, if it can.

    Raises:
        GpuMemoryError: NotIdle, OutOfHostMemory, CudaFailed, or it cannot be asked.
    """
    request = {"threads": threads, "verify": verify, "idle_s": idle_s, "chunk_bytes": chunk_bytes, "zeros": zeros}
    return await _ask(socket, "offload", request, read_moved)


async def reload(socket: Path, *, threads: int = 0) -> Moved:
    """Bring the GPU memory of a process back.

    Args:
        socket: the process's, `<pid>.sock` in the folder.
        threads: that copy, for each GPU; 0: as many as there are processors, from 2 to 16.

    Raises:
        OutOfGpuMemory: it sleeps on, and is whole.
        Damaged: it cannot be used any more.
        GpuMemoryError: CudaFailed, or it cannot be asked.
    """
    return await _ask(socket, "reload", {"threads": threads}, read_moved)


async def _ask(socket: Path, operation: str, request: dict[str, Any], read: Callable[[Answer], _T]) -> _T:
    pid = int(socket.stem) if socket.stem.isdecimal() else 0
    wanted = {name: value for name, value in request.items() if value is not None}
    line = await _exchange(socket, pid, operation, json.dumps({"op": operation, **wanted}).encode() + b"\n")
    answer = Answer(pid, operation, line)
    return read(answer) if answer.flag("ok") else answer.fail()


async def _exchange(socket: Path, pid: int, operation: str, request: bytes) -> bytes:
    """Sends a line and returns the one that comes back."""
    received = b""
    try:
        with _short(socket) as path:
            stream = await anyio.connect_unix(path)
    except OSError as error:
        gone = isinstance(error, FileNotFoundError | ConnectionRefusedError)
        reason = f"nobody listens on {socket}" if gone else f"{socket}: {error.strerror or error}"
        raise Unreachable(pid=pid, operation=operation, reason=reason, connected=not gone) from error
    async with stream:
        try:
            await stream.send(request)
            while b"\n" not in received and len(received) < _MOST_BYTES:
                received += await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError) as error:
            if received:
                raise Unreadable(pid=pid, operation=operation, seen=shown(received)) from error
            reason = "it ended, or closed the connection, before it answered"
            raise Unreachable(pid=pid, operation=operation, reason=reason) from error
    return received.partition(b"\n")[0]


@contextmanager
def _short(socket: Path) -> Iterator[str]:
    """A path of the socket that fits into an address."""
    path = os.fspath(socket)
    if len(os.fsencode(path)) <= _PATH_BYTES:
        yield path
        return
    folder = os.open(socket.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{socket.name}"
    finally:
        os.close(folder)
