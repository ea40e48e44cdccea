"""When it is us who lack something: descriptors, threads, memory. That says nothing about the child."""

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
_MARK: Final = "out of resources here: "


def shortage(error: BaseException | None) -> OutOfResources | None:
    """What we lacked, when that is why it was raised: looked for in what led to it and in the parts of a group."""
    while error is not None:
        if isinstance(error, BaseExceptionGroup):
            return next(filter(None, map(shortage, error.exceptions)), None)
        if isinstance(error, RuntimeError) and _THREADS in str(error):
            return OutOfResources(reason=_THREADS, look_at=_TRY[_THREADS])
        if isinstance(error, OSError) and error.errno in _TRY:
            return OutOfResources(reason=error.strerror or str(error), look_at=_TRY[error.errno])
        error = error.__cause__ or error.__context__  # HTTP clients raise their own, without a cause
    return None


def told(error: BaseException | None) -> str | None:
    """The same in a few words, which `ours` knows again."""
    lack = shortage(error)
    return None if lack is None else f"{_MARK}{lack.reason}"


def ours(why_not: str) -> bool:
    """Whether a check failed for a lack of our own."""
    return why_not.startswith(_MARK)


def translated(error: Exception) -> Exception:
    """The error itself, or `OutOfResources` in its place, with the error as its cause."""
    lack = shortage(error)
    if lack is None or isinstance(error, OutOfResources):
        return error
    lack.__cause__ = error
    return lack


async def look(function: Callable[[], T]) -> T | None:
    """Runs a look at /proc in a thread, because that may take long; None when we are out of threads or descriptors."""
    try:
        return await anyio.to_thread.run_sync(function, abandon_on_cancel=True)
    except (OSError, RuntimeError) as error:
        if shortage(error) is None:
            raise
        return None
