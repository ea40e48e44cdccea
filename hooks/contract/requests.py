"""Whether a request is in flight, by the server's own count."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hooks.contract.findings import Finding
from hooks.http.answer import BadAnswer, ask

if TYPE_CHECKING:
    from supervisor.child import Child

__all__ = ["Load", "in_flight", "read_load", "silent"]

_SLOTS: Final = "/slots"
_METRICS: Final = "/metrics"
# Running and waiting requests of llama.cpp, vLLM, SGLang.
_GAUGE: Final = re.compile(
    r"(?m)^(?:llamacpp:requests_(?:processing|deferred)|vllm:num_requests_(?:running|waiting)"
    r"|sglang:num_(?:running|queue)_reqs)(?:\{.*\})?[ \t]+(\S+)"
)
_ANSWER_S: Final = 10.0
_FIX: Final = "wait until clients and warmup have their answers, or stop them; half an answer is lost in a restore"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How many requests the server says it works on, and where it says so."""

    requests: int
    where: str


async def read_load(child: Child) -> Load | None:
    """Asks `/slots` of llama.cpp, else the gauges of `/metrics`; None when the server has neither.

    Raises:
        BadAnswer: the server does not answer.
    """
    for path, read in ((_SLOTS, busy_slots), (_METRICS, running)):
        answer = await ask(child, path, timeout_s=_ANSWER_S)
        count = read(answer.body) if answer.status == 200 else None
        if count is not None:
            return Load(requests=count, where=f"{child.url}{path}")
    return None


def in_flight(load: Load | None, pid: int) -> list[Finding]:
    """No request is in flight; a server that does not count them is judged by its connections alone."""
    if load is None or load.requests == 0:
        return []
    what = f"works on {load.requests} request{'s' if load.requests > 1 else ''}"
    return [Finding(check="in-flight", pid=pid, what=what, where=load.where, fix=_FIX)]


def silent(error: BadAnswer, child: Child, pid: int) -> Finding:
    """A server that does not answer cannot be told from one that is busy."""
    return Finding(
        check="in-flight",
        pid=pid,
        what="does not say whether it is at work",
        where=f"{child.url}{_SLOTS}",
        line=str(error),
        fix="see what it waits for: a single-threaded server waits for the client that stays connected",
    )


def busy_slots(body: str) -> int | None:
    """The busy ones among llama.cpp's slots; None when the text is something else."""
    try:
        slots = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(slots, list) or not all(isinstance(slot, dict) and "is_processing" in slot for slot in slots):
        return None
    return sum(bool(slot["is_processing"]) for slot in slots) if slots else None


def running(body: str) -> int | None:
    """Requests that run or wait, by the gauges of a Prometheus page; None when it has none of them."""
    values = []
    for text in _GAUGE.findall(body):
        try:
            values.append(float(text))
        except ValueError:
            continue
    values = [value for value in values if math.isfinite(value)]
    return math.ceil(sum(values)) if values else None
