"""One running process with its log pump, the watch for its exit, and its teardown."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import NoReturn

import anyio

from supervisor.logs.pump import LogPump
from supervisor.process.process import Process
from supervisor.timing.racing import alongside, uninterrupted, unwrapped


@asynccontextmanager
async def managed(
    process: Process,
    pump: LogPump,
    end: Callable[[Exception | None], Awaitable[None]],
    *,
    on_notice: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[None]:
    """Drains the pipes of a process and watches for its exit while the block lasts; then ends it and closes it.

    Args:
        process: just started; closed when this is over.
        pump: of its pipes; not yet running.
        end: the teardown, called once, with the error that ended the block; None: it returned or was cancelled. Pump
            and watch run until it has returned, because it needs them.
        on_notice: called with words when the guardian was ended by somebody and replaced.

    Errors of the block are raised as they are. A pump or a watch that fails cancels the block, and that is the error
    then: a process that nobody drains or watches is not left running. Cancellation of the block is the request to end;
    `end` is shielded from it, and an error that came before it is not replaced by it.
    """
    plumbing = anyio.CancelScope(shield=True)  # outlives a cancellation of the block: the teardown needs it
    broken = anyio.Event()
    defects: list[Exception] = []

    async def keep(work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception as error:  # noqa: BLE001  the other one goes on: the teardown needs what is left
            defects.append(unwrapped(error))
            broken.set()

    async def plumb() -> None:
        with plumbing:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(keep, pump.run)
                tasks.start_soon(keep, process.watch)
                tasks.start_soon(keep, partial(process.keep_guarded, on_notice))

    async def fail_when_broken() -> NoReturn:
        await broken.wait()
        raise defects[0]

    try:
        async with alongside(plumb):
            failure: Exception | None = None
            try:
                async with alongside(fail_when_broken):
                    yield
            except Exception as error:
                failure = error
                raise
            finally:
                try:
                    await uninterrupted(partial(end, failure))
                finally:
                    plumbing.cancel()
                if failure is None and defects:  # it broke while it was being stopped: an error all the same
                    failure = defects[0]
                    raise failure
    finally:
        process.close()
