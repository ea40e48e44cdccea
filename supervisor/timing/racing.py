"""Structured concurrency : `race` (the first to end decides) and `alongside` (work in the background of a block).

Both raise errors as they are, never in an ExceptionGroup, and both have waited for all that they started when they end.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio

T = TypeVar("T")


async def race(*works: Callable[[], Awaitable[T]]) -> T:
    """Runs the works at the same time; the first to end decides: its result is returned, or its error raised.

    The others are cancelled at that moment and waited for; what they return or raise then is dropped. Works run in
    tasks of their own. A cancellation from outside goes to all of them and through; only an error that came before is
    raised in its place, and the cancellation is then delivered at the next checkpoint.
    """
    results: list[T] = []
    errors: list[Exception] = []

    async def run(work: Callable[[], Awaitable[T]]) -> None:
        try:
            result = await work()
        except Exception as error:  # noqa: BLE001  raised again below, outside the group
            if not (results or errors):
                errors.append(error)
        except anyio.get_cancelled_exc_class():
            if is_cancelled():
                raise
            if not (results or errors):
                errors.append(StrayCancellation())
        else:
            if not (results or errors):
                results.append(result)
        tasks.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as tasks:
            for work in works:
                tasks.start_soon(run, work)
    except anyio.get_cancelled_exc_class():
        if not errors:
            raise
        _deliver_again()
    try:
        if errors:
            raise errors[0]
        return results[0]
    finally:
        errors.clear()  # or the error would live in a cycle with this frame, and what it holds open too


@asynccontextmanager
async def alongside(*works: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """Runs works in the background of a block: `async with alongside(watch): ...`.

    The block runs in the caller's task. When it ends, the works are cancelled and waited for. A work that returns ends
    nothing; one that raises cancels the block, and its error is raised. Of several errors the first is raised, the
    others are dropped. A cancellation from outside goes through, but does not replace an error that came before it: it
    is then delivered at the next checkpoint.
    """
    failure: BaseException | None = None
    try:
        async with anyio.create_task_group() as tasks:

            async def run(work: Callable[[], Awaitable[object]]) -> None:
                nonlocal failure
                try:
                    await work()
                except Exception as error:  # noqa: BLE001  raised again below, outside the group
                    failure = failure or error
                    tasks.cancel_scope.cancel()

            for work in works:
                tasks.start_soon(run, work)
            try:
                yield
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as error:  # noqa: BLE001  raised again below, outside the group
                failure = failure or error
            tasks.cancel_scope.cancel()
    except anyio.get_cancelled_exc_class():
        if failure is None:
            raise
        _deliver_again()
    try:
        if failure is not None:
            raise failure
    finally:
        del failure  # or it would live in a cycle with this frame, and what it holds open too


async def uninterrupted(work: Callable[[], Awaitable[None]]) -> None:
    """Does the work to its end; a cancellation that comes meanwhile is delivered at the next checkpoint after it.

    A shielded scope holds back every cancellation but asyncio's own `Task.cancel`, which a host may send twice. So
    there the work has a task of its own, which nobody else knows.
    """
    with anyio.CancelScope(shield=True):
        try:
            host = asyncio.current_task()
        except RuntimeError:  # Trio
            host = None
        if host is None:
            await work()
            return
        task = asyncio.ensure_future(work())
        was_cancelled = False
        while not task.done():
            try:
                await asyncio.wait((task,))
            except asyncio.CancelledError:
                was_cancelled = True
        if was_cancelled:
            _deliver_again()
        task.result()


class StrayCancellation(RuntimeError):
    """Work ended with a cancellation that nobody asked for: it awaited an asyncio task that was cancelled."""

    def __str__(self) -> str:
        return "it awaited something that was cancelled"


def is_cancelled() -> bool:
    """Whether the present task really is being cancelled, by a scope or by asyncio's own `Task.cancel`."""
    if anyio.current_effective_deadline() == -math.inf:
        return True
    try:
        task = asyncio.current_task()
    except RuntimeError:  # Trio, where no such exception goes astray
        return True
    return task is not None and task.cancelling() > 0


def _deliver_again() -> None:
    """Makes the next checkpoint raise the cancellation that gave way to an error.

    A cancelled scope does that by itself. asyncio's own `Task.cancel` raises once only, and whoever catches the error
    and goes on would never hear of the request to stop.
    """
    try:
        task = asyncio.current_task()
    except RuntimeError:  # Trio
        return
    if task is not None and task.cancelling() and anyio.current_effective_deadline() != -math.inf:
        task.uncancel()
        task.cancel()


def unwrapped(error: Exception) -> Exception:
    """The first error in a group, however deep, or the error itself."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error
