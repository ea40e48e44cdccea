"""Tell a supervisor that ran out of descriptors, threads or memory from a child that failed."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final, TypeVar

import anyio.to_thread

from supervisor.errors import OutOfResources

T = TypeVar("T")

_THREADS: Final = "can't start new thread"  # what Python says; it has no class of its own for it
# Not EAGAIN: every non-blocking socket raises it on the way, so that it stands in the contexts of other errors too.
_TRY: Final = {
    _THREADS: "`ulimit -u`, the container's limit of processes (pids.max), and what else this user runs",
    errno.EMFILE: "`ulimit -n`, and what this process holds open",
    errno.ENFILE: "fs.file-max, and which process of this machine holds so many files open",
    errno.ENOMEM: "the memory of this machine, and the container's limit",
    errno.ENOBUFS: "the memory of this machine, and the container's limit",
}


def detect(error: BaseException | None) -> OutOfResources | None:
    """Detect that this process, not the child, ran out of descriptors, threads or memory.

    Looks at the error, at what led to it (cause, else context), and at the parts of a group; each exception once,
    because chains may be cyclic: `raise group.exceptions[0] from group` is enough. None: it has another reason.
    """
    pending, seen = [error], set[int]()
    while pending:
        error = pending.pop()
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        if isinstance(error, OutOfResources):
            return error
        if isinstance(error, BaseExceptionGroup):
            pending.extend(reversed(error.exceptions))
            continue
        if isinstance(error, RuntimeError) and _THREADS in str(error):
            return OutOfResources(reason=_THREADS, look_at=_TRY[_THREADS])
        if isinstance(error, OSError) and error.errno in _TRY:
            return OutOfResources(reason=error.strerror or str(error), look_at=_TRY[error.errno])
        pending.append(error.__cause__ or error.__context__)  # HTTP clients raise their own, without a cause
    return None


def translated(error: Exception) -> Exception:
    """The error itself, or in its place `OutOfResources`, with the error as its cause."""
    exhausted = detect(error)
    if exhausted is None or exhausted is error:
        return error
    if exhausted.__cause__ is None:
        exhausted.__cause__ = error
    return exhausted


async def look(function: Callable[[], T]) -> T | None:
    """Runs a look at /proc in a thread, because that may take long; None: out of threads or descriptors for it."""
    try:
        return await anyio.to_thread.run_sync(function, abandon_on_cancel=True)
    except (OSError, RuntimeError) as error:
        if detect(error) is None:
            raise
        return None
