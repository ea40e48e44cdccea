"""Whether a request is in flight, by the engine's own count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hooks.contract.findings import Finding
from hooks.http.answer import BadAnswer
from hooks.http.dialect import read

if TYPE_CHECKING:
    from supervisor.child import Child

__all__ = ["Load", "in_flight", "read_load", "silent"]

_ANSWER_S: Final = 10.0
_FIX: Final = "wait until clients and warmup have their answers, or stop them; half an answer is lost in a restore"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How many requests the engine says it works on, and the URL where it says so."""

    requests: int
    where: str


async def read_load(child: Child) -> Load | None:
    """Asks for the requests that run or wait, on each route that the dialect names until one tells.

    Returns:
        None when the engine counts no requests: its connections alone are judged then.

    Raises:
        BadAnswer: the server does not answer.
    """
    for reading in child.profile.dialect.requests:
        count = await read(child, reading, timeout_s=_ANSWER_S)
        if count is not None:
            return Load(requests=count, where=f"{child.url}{reading.path}")
    return None


def in_flight(load: Load | None, pid: int) -> list[Finding]:
    """No request is in flight, as far as the engine counts them."""
    if load is None or load.requests == 0:
        return []
    what = f"works on {load.requests} request{'s' if load.requests > 1 else ''}"
    return [Finding(check="in-flight", pid=pid, what=what, where=load.where, fix=_FIX)]


def silent(error: BadAnswer, child: Child, pid: int) -> Finding:
    """The finding for a server that does not answer: it may be busy, and nobody can tell."""
    return Finding(
        check="in-flight",
        pid=pid,
        what="does not say whether it is at work",
        where="".join([child.url, *(reading.path for reading in child.profile.dialect.requests[:1])]),
        line=str(error),
        fix="see what it waits for: a single-threaded server waits for the client that stays connected",
    )
