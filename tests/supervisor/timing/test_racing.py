"""Work side by side: the first to end decides, and errors come out as they are."""

from __future__ import annotations

import asyncio

import anyio
import anyio.lowlevel
import pytest

from supervisor.timing.racing import alongside, race, unwrapped

pytestmark = pytest.mark.anyio


async def soon() -> str:
    await anyio.lowlevel.checkpoint()
    return "soon"


async def fails() -> str:
    await anyio.lowlevel.checkpoint()
    raise LookupError("on purpose")


async def never() -> str:
    await anyio.sleep_forever()
    return "never"


class Slow:
    """Work that notes how it ended, and may raise on its way out."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.cancelled = False

    async def __call__(self) -> str:
        try:
            return await never()
        except anyio.get_cancelled_exc_class():
            self.cancelled = True
            if self.error is not None:
                raise self.error from None
            raise


async def test_the_first_to_end_wins_at_once() -> None:
    """Its result comes back; the others have been cancelled and have ended."""
    slow = Slow()
    with anyio.fail_after(20):
        assert await race(slow, soon, never) == "soon"
    assert slow.cancelled


async def test_the_first_error_is_raised_as_it_is() -> None:
    """An error wins like a result does, and comes in no group."""
    slow = Slow()
    with anyio.fail_after(20), pytest.raises(LookupError, match="on purpose"):
        await race(slow, fails)
    assert slow.cancelled


async def test_what_a_loser_raises_is_dropped() -> None:
    """The race is decided when the first has ended, whatever the others do on their way out."""
    assert await race(soon, Slow(ValueError("too late"))) == "soon"
    with pytest.raises(LookupError):
        await race(fails, Slow(ValueError("too late")))


async def test_a_cancellation_from_outside_cancels_the_race() -> None:
    """All works are cancelled, and the cancellation goes on."""
    slow = Slow()
    with anyio.CancelScope() as outer:
        outer.cancel()
        await race(slow, never)
        pytest.fail("it went on")
    assert outer.cancelled_caught
    assert slow.cancelled


async def test_an_error_is_not_replaced_by_a_later_cancellation() -> None:
    """Who cancels while the losers are wound down does not hide why the race ended."""

    async def loses() -> str:
        try:
            return await never()
        finally:
            outer.cancel()

    with anyio.CancelScope() as outer, pytest.raises(LookupError):
        await race(fails, loses)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_stray_cancellation_is_an_error() -> None:
    """Work that awaits a task which somebody cancelled has failed: the race neither hangs nor passes for cancelled."""

    async def stray() -> str:
        task = asyncio.ensure_future(never())
        task.cancel()
        return await task

    with anyio.fail_after(20), pytest.raises(RuntimeError, match="cancelled"):
        await race(stray, never)


async def test_work_alongside_ends_with_the_block() -> None:
    """It is cancelled when the block is over, and has ended when the next line runs."""
    slow = Slow()
    async with alongside(slow, soon):
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        assert not slow.cancelled
    assert slow.cancelled


@pytest.mark.parametrize("error", [ValueError("on purpose"), StopAsyncIteration(), KeyboardInterrupt()])
async def test_an_error_of_the_block_is_raised_as_it_is(error: BaseException) -> None:
    """In no group; the work is cancelled first."""
    slow = Slow()
    with pytest.raises(type(error)) as caught:
        async with alongside(slow):
            await anyio.lowlevel.checkpoint()
            raise error
    assert caught.value is error
    assert slow.cancelled


async def test_an_error_of_the_work_cancels_the_block() -> None:
    """It is raised as it is, though the block may raise something else on its way out."""
    with anyio.fail_after(20), pytest.raises(LookupError, match="on purpose"):
        async with alongside(fails):
            await Slow(ValueError("later"))()


async def test_a_cancelled_block_is_cancelled() -> None:
    """A cancellation from outside goes through the block."""
    with anyio.CancelScope() as outer:
        async with alongside(never):
            outer.cancel()
            await anyio.sleep_forever()
        pytest.fail("it went on")
    assert outer.cancelled_caught


async def test_an_error_of_the_block_outlives_a_cancellation() -> None:
    """A cancellation that comes while the work is wound down does not replace the error."""

    async def cancels() -> None:
        try:
            await never()
        finally:
            outer.cancel()

    with anyio.CancelScope() as outer, pytest.raises(LookupError):
        async with alongside(cancels):
            await fails()


async def test_an_error_may_be_taken_out_of_its_groups() -> None:
    """The first one of the innermost group; an error without a group is itself."""
    error = ValueError("x")
    assert unwrapped(ExceptionGroup("a", [ExceptionGroup("b", [error]), KeyError()])) is error
    assert unwrapped(error) is error


@pytest.mark.parametrize("side_by_side", ["race", "alongside"])
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_asyncios_own_cancellation_is_not_lost(side_by_side: str) -> None:
    """Who catches an error that came together with `Task.cancel` hears of the cancellation at the next checkpoint."""
    failing, seen = anyio.Event(), []

    async def fail() -> None:
        await failing.wait()
        raise LookupError("on purpose")

    async def host() -> None:
        try:
            if side_by_side == "race":
                await race(fail)
            else:
                async with alongside(fail):
                    await anyio.sleep_forever()
        except LookupError:
            seen.append("the error")
        await asyncio.sleep(30)
        seen.append("went on")

    task = asyncio.create_task(host())
    await anyio.wait_all_tasks_blocked()
    failing.set()
    asyncio.get_running_loop().call_soon(task.cancel)  # after the task that fails has run, before the host has
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == ["the error"]
