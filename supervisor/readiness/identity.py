"""Who answers: whether the listener is a process of the child's, and whether it serves the model that was asked for."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import anyio.to_thread

from supervisor.child import Child
from supervisor.errors import PortTaken, WrongModel
from supervisor.linux import listeners, processes
from supervisor.linux.exhaustion import look
from supervisor.readiness.probe import NotUp, Why, get, out_of_resources

if TYPE_CHECKING:
    import httpx


async def foreign_owner(child: Child) -> listeners.Owner | NotUp | None:
    """Somebody else who receives connections to the child's address; None: nobody, or /proc does not tell.

    Several may share a port (SO_REUSEPORT): then none is safe. NotUp: this process is out of what the look needs.
    """
    assert child.pid
    ask = partial(listeners.owners, child.port, child.pid, child.cookie, host=child.host)
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
    if child.profile.health.allow_foreign_listener:
        return None
    match await foreign_owner(child):
        case listeners.Owner() as owner:
            raise PortTaken(
                host=child.profile.host,
                port=child.port,
                pid=owner.pid,
                command=owner.command(child.redact),
                waited_s=0.0,
                may_forward=True,
            )
        case why_not:
            return why_not


async def wider_than_asked(child: Child) -> str | None:
    """Words about a server that listens on every network interface though the profile names one address; or None."""
    asked = child.profile.host
    if asked != child.host:  # a wildcard address itself
        return None
    found = await look(partial(listeners.wildcards, child.port, asked))
    if not found:
        return None
    return (
        f"the server listens on every network interface ({' and '.join(found)}, port {child.port}) though {asked} was "
        f"asked for, so other machines may reach it: pass it the address, as {{host}} in its command, or ask for "
        f"{found[0]} with --host if that is meant"
    )


async def check_model(client: httpx.AsyncClient, child: Child) -> NotUp | None:
    """Make sure that the server lists the profile's model, if the profile names one and the engine lists its models.

    Raises:
        WrongModel: it lists others, or none, or refuses to tell; or a model that must be loaded failed to load.
    """
    wanted, models = child.profile.health.model_id, child.profile.dialect.models
    if child.profile.dialect.states is not None:
        return await _check_states(client, child)
    if wanted is None or models is None:
        return None
    answer = await get(client, child, models.path)
    if isinstance(answer, NotUp):
        return NotUp(why=answer.why, detail=f"{models.path}: {answer.detail}")
    status, body = answer
    if status in (401, 403, 404):
        seen = f"{models.path} answers HTTP {status}"
    elif status != 200:
        return NotUp(why=Why.NOT_YET, detail=f"{models.path}: HTTP {status}")
    elif (names := models.read(body)) is None:
        seen = f"{models.path} answers with something that is no list of models"
    elif wanted in names:
        return None
    else:
        seen = f"it lists {', '.join(map(repr, sorted(names))) or 'no model'}"
    raise WrongModel(wanted=wanted, seen=child.redact(seen), waited_s=0.0)


async def lost_model(client: httpx.AsyncClient, child: Child) -> NotUp | None:
    """A model that must be loaded and stays lost; None: there is none, or the engine does not tell."""
    states, must_load = child.profile.dialect.states, child.profile.health.must_load
    if states is None or not must_load:
        return None
    answer = await get(client, child, states.path)
    if isinstance(answer, NotUp):
        return answer
    found = (states.read(answer[1]) if answer[0] == 200 else None) or {}
    for name in must_load:
        if (state := found.get(name)) and state.lost:
            return NotUp(why=Why.BROKEN, detail=child.redact(f"the model {name!r} must be loaded: it is {state}"))
    return None


async def _check_states(client: httpx.AsyncClient, child: Child) -> NotUp | None:
    """`check_model` of an engine that holds several: each wanted model is known, none failed, the needed are loaded."""
    states, health = child.profile.dialect.states, child.profile.health
    assert states
    wanted = tuple(dict.fromkeys((*([health.model_id] if health.model_id else []), *health.must_load)))
    if not wanted:
        return None
    answer = await get(client, child, states.path)
    if isinstance(answer, NotUp):
        return NotUp(why=answer.why, detail=f"{states.path}: {answer.detail}")
    if answer[0] != 200:
        return NotUp(why=Why.NOT_YET, detail=f"{states.path}: HTTP {answer[0]}")
    found = states.read(answer[1]) or {}
    for name in wanted:
        if (state := found.get(name)) is None:
            seen = f"it knows {', '.join(map(repr, sorted(found))) or 'no model'}"
        elif state.value == "failed":
            seen = f"it is {state}"
        else:
            continue
        raise WrongModel(wanted=name, seen=child.redact(seen), waited_s=0.0)
    late = [f"{name!r} is {found[name]}" for name in health.must_load if found[name].value in ("loading", "unloaded")]
    return NotUp(why=Why.NOT_YET, detail=child.redact(f"the model {', '.join(late)}")) if late else None
