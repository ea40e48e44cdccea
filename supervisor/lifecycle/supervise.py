"""`supervise`: runs of the server, one after the other, within the restart budget."""

from __future__ import annotations

import re
from functools import partial
from typing import Final

import anyio
from anyio.abc import TaskStatus

from supervisor import events
from supervisor.child import Child
from supervisor.emitter import Emitter
from supervisor.errors import DiedBeforeReady, PortTaken, SupervisorError
from supervisor.lifecycle.control import Control
from supervisor.lifecycle.handle import Supervised
from supervisor.lifecycle.restart import NoRestart, RestartBudget, is_final
from supervisor.lifecycle.run import Run, Supervision
from supervisor.linux import processes
from supervisor.process.spawn import free_port
from supervisor.profile import Profile
from supervisor.redact import Redactor, inherited_secrets
from supervisor.steps import Hooks
from supervisor.timing.racing import unwrapped

_PORT_TRIES: Final = 5
_BIND_FAILED: Final = re.compile(r"(?i)address already in use|EADDRINUSE|(could ?n.t|failed to|cannot) bind")


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
    redact = Redactor((*profile.secrets, *inherited_secrets(profile.inherit_env)))
    emit = Emitter(hooks.observers)
    port = profile.port or free_port(profile.host)
    child = partial(Child, profile=profile, pid=None, redact=redact, tell=emit.tell)
    control = Control(emit, child(port=port))
    supervision = Supervision(profile=profile, hooks=hooks, emit=emit, control=control, task_status=task_status)
    budget = RestartBudget(profile.restart)
    lost_ports = runs = 0
    defect: Exception | None = None
    try:
        while True:
            runs += 1
            emit(events.Starting(attempt=runs))
            if runs == 1 and not processes.AVAILABLE:
                emit(events.Notice(detail="no /proc here: load progress, stalls and foreign listeners go unseen"))
            run = Run(supervision, child(port=port))
            try:
                await run.until_ended()
            except SupervisorError as error:
                was_ready = run.ready_s is not None
                if profile.port == 0 and not was_ready and lost_ports < _PORT_TRIES and _lost_the_port(error):
                    lost_ports += 1
                    taken, port = port, free_port(profile.host)
                    emit(events.Notice(detail=f"port {taken} was taken in the meantime; trying {port}"))
                    continue
                if is_final(error, first_start=runs == lost_ports + 1, was_ready=was_ready):
                    delay_s: float | NoRestart = NoRestart(reason="nothing would change")
                else:
                    delay_s = budget.next_delay_s(ready_s=run.ready_s, resuming=control.pending("resume"))
                if isinstance(delay_s, NoRestart):
                    error.add_note(f"Not restarted: {delay_s.reason}.")
                    control.answer(error)
                    raise
                if control.pending("seal"):
                    control.answer(error)
                emit(events.ChildRestarting(attempt=budget.attempt, delay_s=delay_s))
                await _pause(delay_s, emit)
    except ExceptionGroup as group:
        defect = unwrapped(group)  # a defect of this package; still, callers get one exception to look at
    finally:
        control.close()
    assert defect is not None
    raise defect


async def _pause(delay_s: float, emit: Emitter) -> None:
    try:
        await anyio.sleep(delay_s)
    except anyio.get_cancelled_exc_class():
        emit(events.Stopped())
        raise


def _lost_the_port(error: SupervisorError) -> bool:
    if isinstance(error, DiedBeforeReady):
        return any(_BIND_FAILED.search(line) for line in error.tail)
    return isinstance(error, PortTaken)
