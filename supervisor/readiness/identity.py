"""Who answers: whether the listener is a process of the child's, and whether it serves the model that was asked for."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import anyio.to_thread

from supervisor.child import Child
from supervisor.dialect import openai_models
from supervisor.errors import PortTaken, WrongModel
from supervisor.linux import processes
from supervisor.readiness.probe import NotUp, Why, get, out_of_resources

if TYPE_CHECKING:
    import httpx


async def foreign_owner(child: Child) -> processes.Owner | NotUp | None:
    """Somebody else who receives connections to the child's address; None: nobody, or /proc does not tell.

    Several may share a port (SO_REUSEPORT): then none is safe. NotUp: this process lacks what it takes to look.
    """
    assert child.pid
    ask = partial(processes.owners, child.port, child.pid, child.cookie, host=child.host)
    try:
        owners = await anyio.to_thread.run_sync(ask, abandon_on_cancel=True) if processes.AVAILABLE else []
    except (OSError, RuntimeError) as error:
        if failure := out_of_resources(error):
            return failure
        raise
    return next((owner for owner in owners if not owner.mine), None)


async def check_owner(child: Child) -> NotUp | None:
    """Makes sure that nobody else listens at the child's address.

    Raises:
        PortTaken: somebody does.
    """
    match await foreign_owner(child):
        case processes.Owner() as owner:
            raise PortTaken(
                host=child.profile.host,
                port=child.port,
                pid=owner.pid,
                command=owner.command(child.redact),
                waited_s=0.0,
            )
        case why_not:
            return why_not


async def check_model(client: httpx.AsyncClient, child: Child) -> NotUp | None:
    """Makes sure that the server lists the profile's model, if the profile names one.

    Raises:
        WrongModel: it lists others, or none, or refuses to tell.
    """
    health = child.profile.health
    if health.model_id is None:
        return None
    answer = await get(client, child, health.identity_path)
    if isinstance(answer, NotUp):
        return NotUp(why=answer.why, detail=f"{health.identity_path}: {answer.detail}")
    status, body = answer
    if status in (401, 403, 404):
        seen = f"{health.identity_path} answers HTTP {status}"
    elif status != 200:
        return NotUp(why=Why.NOT_YET, detail=f"{health.identity_path}: HTTP {status}")
    else:
        models = child.profile.dialect.models
        names = (models.read if models else openai_models)(body) or ()
        if health.model_id in names:
            return None
        seen = f"it lists {', '.join(map(repr, sorted(names))) or 'no model'}"
    raise WrongModel(wanted=health.model_id, seen=child.redact(seen), waited_s=0.0)
