"""How the router speaks: the state of each model, and routes that name their model. Pure.

Read in the source of b11434 (tools/server/server-models.cpp), and tested against captured answers. `/health` is green
before any model is loaded. Asked with GET and a model, `/props`, `/metrics` and `/slots` load that model where
`autoload` is on, and may evict another one for it; with `autoload=false` they never do.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import quote

from supervisor.dialect import Dialect, ModelState, Reading
from supervisor.engines.llama_cpp.dialect import LLAMA_CPP, running, total_slots, vision
from supervisor.engines.llama_cpp.flags import OWNED, flag_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ROUTER", "dialect_of", "is_router", "parse_states"]

_MODELS: Final = "/models"
_VALUES: Final[dict[str, Literal["loading", "loaded", "asleep", "unloaded"]]] = {
    "loaded": "loaded",
    "sleeping": "asleep",
    "loading": "loading",
    "downloading": "loading",
    "downloaded": "unloaded",
    "unloaded": "unloaded",
}
# A command with one of these serves that model alone.
_ONE_MODEL: Final = {flag for flag in OWNED["model"].split() if not flag.startswith(("--models", "--no-models"))}


def is_router(argv: Sequence[str], env: Mapping[str, object]) -> bool:
    """Tell whether a llama-server's command and variables name no model, so that the server is a router."""
    named = any(variable in env for variable in ("LLAMA_ARG_MODEL", "LLAMA_ARG_HF_REPO", "LLAMA_ARG_MODEL_URL"))
    return not named and not any((flag_of(argument) or argument) in _ONE_MODEL for argument in argv)


def parse_states(body: str, *, autoload: bool = True) -> Mapping[str, ModelState] | None:
    """Read the states of all models out of the answer of `/models`, by name and alias; None: it is another answer."""
    found: dict[str, ModelState] = {}
    try:
        for entry in json.loads(body)["data"]:
            state = _state(entry["status"], autoload=autoload)
            found |= {name: state for name in (entry["id"], *(entry.get("aliases") or ())) if isinstance(name, str)}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return found


def _state(status: Mapping[str, Any], *, autoload: bool) -> ModelState:
    value = _VALUES.get(status["value"], "unloaded")
    if value == "unloaded" and status.get("failed"):
        return ModelState(value="failed", lost=True, detail=f"its process exited with code {status.get('exit_code')}")
    return ModelState(value=value, lost=value == "unloaded" and not autoload)


def _served(body: str) -> tuple[str, ...] | None:
    """The models that can be asked now: those that are loaded, and those that a request wakes."""
    states = parse_states(body)
    if states is None:
        return None
    return tuple(name for name, state in states.items() if state.value in ("loaded", "asleep"))


def _all_asleep(body: str) -> bool | None:
    """Whether each model that has a process sleeps."""
    states = parse_states(body)
    if states is None:
        return None
    values = {state.value for state in states.values()} - {"unloaded", "failed"}
    return values == {"asleep"}


def dialect_of(models: Sequence[str] = (), *, autoload: bool = True) -> Dialect:
    """Return the router's dialect. What one model tells is asked of the first of these models, and wakes nobody."""
    about = f"?model={quote(models[0], safe='')}&autoload=false" if models else None
    return replace(
        LLAMA_CPP,
        models=Reading(path=_MODELS, read=_served),
        states=Reading(path=_MODELS, read=partial(parse_states, autoload=autoload)),
        several=None,
        asleep=Reading(path=_MODELS, read=_all_asleep),
        requests=(Reading(path=f"/metrics{about}", read=running),) if about else (),
        token_counters=replace(LLAMA_CPP.token_counters, path=f"/metrics{about}")
        if about and LLAMA_CPP.token_counters
        else None,
        slots=Reading(path=f"/props{about}", read=total_slots) if about else None,
        vision=Reading(path=f"/props{about}", read=vision) if about else None,
        # Whoever may watch the models may load and unload them. The list of models itself is public up to b9940.
        admin_paths=("/models/sse",),
    )


ROUTER: Final = dialect_of()
"""The dialect of a router of which no model is known by name."""
