"""How a supervision ends: what counts when several things go wrong, and which failures are final."""

from __future__ import annotations

import errno
import os
import signal
from typing import Any, NoReturn

import anyio
import pytest

from supervisor import Hooks, Restart, State, Stop, Supervised, errors, supervise
from supervisor import events as ev
from supervisor.child import Child
from supervisor.errors import (
    ChildCrashed,
    DiedBeforeReady,
    OutOfResources,
    PortTaken,
    ProfileError,
    SpawnError,
    SupervisorError,
    WrongModel,
)
from supervisor.events import Event
from supervisor.lifecycle import run
from supervisor.lifecycle.restart import is_final
from supervisor.logs.pump import LogPump
from supervisor.process.process import Process
from supervisor.process.spawn import Launched, launch
from support import Recorder, alive, fake_profile, fate, is_in, until_async

QUICK = Restart(policy="on-failure", backoff_s=0.01, jitter=0.0)


class StopAt:
    """An observer that asks for a stop when it sees an event of a class."""

    def __init__(self, kind: type[Event]) -> None:
        self.kind = kind
        self.scope = anyio.CancelScope()
        self.seen = Recorder()

    def __call__(self, event: Event) -> None:
        self.seen(event)
        if isinstance(event, self.kind):
            self.scope.cancel()


@pytest.mark.anyio
@pytest.mark.parametrize("moment", [ev.Stopping, ev.ChildExited, ev.TeardownFinished])
async def test_a_stop_during_the_teardown_of_a_failure_hides_nothing(moment: type[Event]) -> None:
    """A child that died stays the outcome, though a stop is asked for while it is torn down."""
    stop = StopAt(moment)
    with stop.scope, pytest.raises(DiedBeforeReady):
        await supervise(fake_profile("--die-while-loading"), Hooks(observers=(stop,)))
    assert stop.seen.names[-1] == "supervision.failed"
    assert stop.seen.one(ev.Stopping).asked is False


@pytest.mark.anyio
async def test_a_stop_during_the_teardown_of_a_crash_hides_nothing() -> None:
    """The same after READY: the crash is raised, with its last lines."""
    stop = StopAt(ev.Stopping)

    def crash(event: Event) -> None:
        if isinstance(event, ev.ChildReady):
            os.kill(event.pid, signal.SIGSEGV)

    with stop.scope, pytest.raises(ChildCrashed) as caught:
        await supervise(fake_profile(), Hooks(observers=(crash, stop)))
    assert caught.value.tail


@pytest.mark.anyio
async def test_a_stop_during_the_teardown_of_a_failure_that_would_be_healed_is_a_stop() -> None:
    """Where a restart would follow, the stop comes in its place, as it does during the delay before a restart."""
    stop = StopAt(ev.Stopping)
    with stop.scope:
        await supervise(fake_profile("--die-while-loading", restart=QUICK), Hooks(observers=(stop,)))
    assert stop.scope.cancelled_caught
    assert stop.seen.names[-1] == "supervision.stopped"


@pytest.mark.anyio
@pytest.mark.parametrize("broken", ["pump", "watch"])
async def test_a_broken_pump_or_watch_is_an_error(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that is no longer drained or watched is torn down because of an error, not as if a host had asked."""

    async def fails(*_: Any) -> NoReturn:
        raise ZeroDivisionError("a defect")

    def fails_at_once(*_: Any, **__: Any) -> NoReturn:
        raise ZeroDivisionError("a defect")

    if broken == "pump":
        monkeypatch.setattr(LogPump, "_keep", fails_at_once)
    else:
        monkeypatch.setattr(Process, "watch", fails)
    seen = Recorder()
    with pytest.raises(ZeroDivisionError, match="a defect"):
        await supervise(fake_profile(stop=Stop(grace_s=0.5)), Hooks(observers=(seen,)))
    stopping = seen.one(ev.Stopping)
    assert (stopping.asked, stopping.reason) == (False, "ZeroDivisionError")
    assert seen.names[-1] == "supervision.failed"
    assert seen.of(ev.ChildExited)  # seen, though one of the two was broken
    assert not alive(seen.one(ev.ChildSpawned).pid)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "error",
    [
        WrongModel(wanted="a", seen="it lists 'b'", waited_s=0),
        PortTaken(host="127.0.0.1", port=1, pid=None, command=None, waited_s=0),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_what_is_wrong_at_a_resume_is_healed(error: SupervisorError, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that had been READY and answers wrongly after a snapshot is replaced by a cold start on the same port."""

    async def wrong(*_: Any, **__: Any) -> NoReturn:
        raise error

    monkeypatch.setattr(run, "poll_until_up", wrong)
    async with anyio.create_task_group() as tasks:
        server: Supervised = await tasks.start(supervise, fake_profile(restart=Restart(policy="on-resume")))
        old, url = server.pid, server.url
        await server.seal()
        await server.resume()
        assert is_in(server, State.READY)
        assert server.pid != old
        assert server.url == url
        tasks.cancel_scope.cancel()


def spawn_error(number: int) -> SpawnError:
    error = SpawnError(argv=("x",), reason=os.strerror(number))
    error.__cause__ = OSError(number, os.strerror(number))
    return error


@pytest.mark.anyio
@pytest.mark.parametrize("number", [errno.EAGAIN, errno.EMFILE])
async def test_a_restart_that_lacks_a_process_or_descriptor_is_tried_again(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shortage in the moment of a restart costs an attempt, and does not end the supervision."""
    tries = 0

    async def launches(child: Child) -> Launched:
        nonlocal tries
        tries += 1
        if tries == 2:
            raise spawn_error(number)
        return await launch(child)

    monkeypatch.setattr(run, "launch", launches)
    seen = Recorder()
    async with anyio.create_task_group() as tasks:
        server: Supervised = await tasks.start(supervise, fake_profile(restart=QUICK), Hooks(observers=(seen,)))
        assert server.pid
        os.kill(server.pid, signal.SIGKILL)
        await until_async(lambda: len(seen.of(ev.ChildReady)) == 2)
        tasks.cancel_scope.cancel()
    assert [failed.error for failed in seen.of(ev.Failed)] == ["ChildCrashed", "SpawnError"]


@pytest.mark.anyio
async def test_a_shortage_before_the_spawn_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system error between the Steps and the spawn is OutOfResources, with its event."""

    def launches(_: Child) -> NoReturn:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(run, "launch", launches)
    error, seen = await fate(fake_profile())
    assert isinstance(error, OutOfResources)
    assert seen.names == ["child.starting", "supervision.failed"]


FIRST, AGAIN, SERVED = (True, False), (False, False), (True, True)


@pytest.mark.parametrize(
    ("error", "final_in"),
    [
        (ProfileError(field="port", value=-1, allowed="0 or more"), {FIRST, AGAIN, SERVED}),
        (spawn_error(errno.ENOENT), {FIRST, AGAIN}),
        (spawn_error(errno.EAGAIN), {FIRST}),
        (spawn_error(errno.ENOMEM), {FIRST}),
        (PortTaken(host="h", port=1, pid=None, command=None, waited_s=0), {FIRST}),
        (WrongModel(wanted="a", seen="b", waited_s=0), {FIRST, AGAIN}),
        (ChildCrashed(exit_code=1, signal=None, uptime_s=1), set()),
        (errors.LoadStalled(waited_s=1, stall_s=1, bytes_read=0, total_bytes=None, detail=""), set()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whether_a_failure_is_final(error: SupervisorError, final_in: set[tuple[bool, bool]]) -> None:
    """It depends on what came before: a first start with wrong settings ends it, a snapshot gone wrong does not."""
    for first_start, was_ready in (FIRST, AGAIN, *([] if isinstance(error, SpawnError) else [SERVED])):
        final = is_final(error, first_start=first_start, was_ready=was_ready)
        assert final is ((first_start, was_ready) in final_in)
