"""All processes of a server at once: what they hold, putting it aside, and bringing it back."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import anyio

from hooks.sleep.folder import sockets
from hooks.sleep.offload import client
from hooks.sleep.offload.errors import Damaged, GpuMemoryError, NothingCaught, Unreachable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence
    from pathlib import Path

    from hooks.sleep.offload.client import Moved, Status

__all__ = ["AllMoved", "look", "offload_all", "reload_all", "sleep_on"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class AllMoved:
    """What an offload or a reload did in all processes.

    Attributes:
        moved: by process; one in which nothing was to do says `already`.
        took_s: until the last had answered.
    """

    moved: tuple[Moved, ...]
    took_s: float

    @property
    def new(self) -> AllMoved:
        """Without the processes in which nothing was to do."""
        return replace(self, moved=tuple(each for each in self.moved if not each.already))

    @property
    def pids(self) -> tuple[int, ...]:
        """The processes."""
        return tuple(each.pid for each in self.moved)

    @property
    def bytes(self) -> int:
        """Of GPU memory."""
        return sum(each.bytes for each in self.moved)

    @property
    def stored_bytes(self) -> int:
        """Of these, what moved through host memory."""
        return sum(each.stored_bytes for each in self.moved)

    @property
    def gb_per_s(self) -> float:
        """How fast, all together: each process has its own path to its GPU."""
        return round(sum(each.gb_per_s for each in self.moved), 3)


async def look(folder: Path) -> tuple[Status, ...]:
    """Ask every process in the folder what it holds; one that has ended is left out.

    Raises:
        GpuMemoryError: one that lives does not say.
    """
    found, failures = await _ask_all(sockets(folder), client.status)
    _raise(failure for failure in failures.values() if not _ended(failure))
    return tuple(found.values())


async def offload_all(folder: Path, pids: Iterable[int], *, threads: int, verify: bool, idle_s: float) -> AllMoved:
    """Put the GPU memory of these processes aside, all at once: of all of them, or of none.

    Args:
        folder: of the sockets.
        pids: the processes.
        threads, verify, idle_s: see `client.offload`.

    Raises:
        GpuMemoryError: one could not. Its `operation` is `offload` when all have their memory back, and `reload` when
            one has not.
    """
    began = time.monotonic()
    ask = partial(client.offload, threads=threads, verify=verify, idle_s=idle_s)
    paths = [folder / f"{pid}.sock" for pid in pids]
    moved, failures = await _ask_all(paths, ask)
    if failures:
        # Of one that broke off in the middle nobody knows how far it came.
        _, stuck = await _ask_all(paths, partial(client.reload, threads=threads))
        _raise(failure for failure in stuck.values() if not isinstance(failure, Unreachable | NothingCaught))
        _raise(failures.values())
    return AllMoved(moved=tuple(moved.values()), took_s=time.monotonic() - began)


async def reload_all(folder: Path, *, away: Iterable[int] = (), threads: int) -> AllMoved:
    """Bring the GPU memory of every process in the folder back; those that are awake say so.

    Args:
        folder: of the sockets.
        away: processes that must be there, because their memory was put aside.
        threads: that copy, for each GPU; 0: as many as there are processors, from 2 to 16.

    Raises:
        GpuMemoryError: one could not, or is gone.
    """
    began = time.monotonic()
    known = {*sockets(folder), *(folder / f"{pid}.sock" for pid in away)}
    paths = sorted(known, key=lambda path: int(path.stem))
    moved, failures = await _ask_all(paths, partial(client.reload, threads=threads))
    must = {f"{pid}.sock" for pid in away}
    _raise(
        failure
        for path, failure in failures.items()
        if path.name in must or not (_ended(failure) or isinstance(failure, NothingCaught))
    )
    return AllMoved(moved=tuple(moved.values()), took_s=time.monotonic() - began)


async def sleep_on(folder: Path, pids: Iterable[int], *, threads: int, verify: bool, idle_s: float) -> None:
    """After a reload for which a GPU had no room: put aside again what came back on the others, as far as that goes.

    Else half of a server holds GPU memory while it counts as asleep. The next reload takes them all as they are.
    """
    ask = partial(client.offload, threads=threads, verify=verify, idle_s=idle_s)
    await _ask_all([folder / f"{pid}.sock" for pid in pids], ask)


async def _ask_all(
    paths: Sequence[Path], ask: Callable[[Path], Awaitable[_T]]
) -> tuple[dict[Path, _T], dict[Path, GpuMemoryError]]:
    """Asks every process at once; returns the answers and the failures."""
    answers: dict[Path, _T] = {}
    failures: dict[Path, GpuMemoryError] = {}

    async def one(path: Path) -> None:
        try:
            answers[path] = await ask(path)
        except GpuMemoryError as failure:
            failures[path] = failure

    async with anyio.create_task_group() as tasks:
        for path in paths:
            tasks.start_soon(one, path)
    return {path: answers[path] for path in paths if path in answers}, failures


def _ended(failure: GpuMemoryError) -> bool:
    return isinstance(failure, Unreachable) and not failure.connected


def _raise(failures: Iterable[GpuMemoryError]) -> None:
    """Raises the worst failure, if there is one, with notes of the others."""
    ranked = sorted(failures, key=lambda failure: not isinstance(failure, Damaged))
    if ranked:
        for other in ranked[1:]:
            ranked[0].add_note(f"Also: {other.summary}")
        raise ranked[0]
