"""`supervise`: lives, one after the other, within the restart budget."""

from __future__ import annotations

import re
from typing import Final

import anyio
from anyio.abc import TaskStatus

from supervisor import events
from supervisor.child import Child
from supervisor.emitter import Emitter
from supervisor.errors import (
    DiedBeforeReady,
    IllegalState,
    PortTaken,
    ProfileError,
    SpawnError,
    SupervisorError,
    WrongModel,
)
from supervisor.lifecycle.handle import Supervised
from supervisor.lifecycle.restart import RestartBudget
from supervisor.lifecycle.run import Life, Run
from supervisor.linux import processes
from supervisor.process.spawn import free_port
from supervisor.profile import Profile
from supervisor.redact import Redactor
from supervisor.steps import Hooks

_PORT_TRIES: Final = 5
_BIND_FAILED: Final = re.compile(r"(?i)address already in use|EADDRINUSE|(could ?n.t|failed to|cannot) bind")
# Another life would end the same way.
_HOPELESS: Final = (ProfileError, SpawnError, PortTaken, WrongModel)


async def supervise(
    profile: Profile,
    hooks: Hooks = Hooks(),  # noqa: B008  frozen
    *,
    task_status: TaskStatus[Supervised] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Runs the profile's server until cancelled. Start it with `await task_group.start(supervise, profile)`.

    Args:
        profile: what to run and how to judge it.
        hooks: Steps at the lifecycle points, and observers.
        task_status: `started(supervised)` fires once, at the first READY.

    Raises:
        SupervisorError: the server never became ready, a Step refused, or it ended unasked and the budget is spent.

    Cancellation is how to stop it: the child gets TERM, then `grace_s`, then KILL, all shielded; when the call is over,
    no process, descriptor or task of it is left. It never returns otherwise.
    """
    redact = Redactor(profile.secrets)
    emit = Emitter(hooks.observers)
    port = profile.port or free_port(profile.host)
    child = Child(profile=profile, port=port, pid=None, redact=redact)
    run = Run(profile=profile, hooks=hooks, emit=emit, handle=Supervised(emit, child), task_status=task_status)
    budget = RestartBudget(profile.restart)
    races = lives = 0
    try:
        while True:
            lives += 1
            emit(events.Starting, attempt=lives)
            if lives == 1 and not processes.AVAILABLE:
                emit(events.Notice, detail="no /proc here: load progress, stalls and foreign listeners go unseen")
            life = Life(run, Child(profile=profile, port=port, pid=None, redact=redact))
            try:
                await life.live()
            except SupervisorError as error:
                if profile.port == 0 and races < _PORT_TRIES and _lost_the_port(error):
                    races += 1
                    taken, port = port, free_port(profile.host)
                    emit(events.Notice, detail=f"port {taken} was taken in the meantime; trying {port}")
                    continue
                if isinstance(error, _HOPELESS):
                    delay_s: float | str = "nothing would change"
                else:
                    resuming = run.handle.pending("resume")
                    delay_s = budget.next_delay_s(ready_s=life.ready_s, resuming=resuming)
                if isinstance(delay_s, str):
                    error.add_note(f"Not restarted: {delay_s}.")
                    run.handle.answer(error)
                    raise
                if run.handle.pending("seal"):
                    run.handle.answer(error)
                emit(events.ChildRestarting, attempt=budget.attempt, delay_s=delay_s)
                await _pause(delay_s, emit)
    except ExceptionGroup as group:
        # Only a defect of ours gets here; still, callers get one exception to look at.
        defect: Exception = group
        while isinstance(defect, ExceptionGroup):
            defect = defect.exceptions[0]
        raise defect from group
    finally:
        run.handle.answer(IllegalState(operation="go on", state="stopped", allowed="a running supervision"))


async def _pause(delay_s: float, emit: Emitter) -> None:
    try:
        await anyio.sleep(delay_s)
    except anyio.get_cancelled_exc_class():
        emit(events.Stopped)
        raise


def _lost_the_port(error: SupervisorError) -> bool:
    if isinstance(error, DiedBeforeReady):
        return any(_BIND_FAILED.search(line) for line in error.tail)
    return isinstance(error, PortTaken)
