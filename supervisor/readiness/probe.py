"""Readiness: one probe, and the wait until probes succeed.

Polling is tenacity's, sleeping is ours: the sleep ends with the delay *or* with a hint (a log line that matches the
engine's ready pattern), whichever is first, so that the poll can be slow and the detection fast. The wait has no end of
its own: the lifecycle races it against the child's exit, a stall and the deadline.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread
from tenacity import AsyncRetrying, RetryCallState, retry_if_result

from supervisor.child import Child
from supervisor.errors import PortTaken, WrongModel
from supervisor.linux import processes
from supervisor.linux.exhaustion import look, told

if TYPE_CHECKING:
    import httpx

_MAX_BODY_BYTES: Final = 1 << 20
_GROWTH: Final = 1.5
_REFUSED: Final = "connection refused"
_TIMED_OUT: Final = "no answer within"
_LOOK_AROUND_S: Final = 1.0  # between two looks for other ports while probes are refused: /proc is not free


class Hint:
    """Wakes the poll early: `see(line)` for every log line."""

    def __init__(self, pattern: str | None) -> None:
        self._pattern = re.compile(pattern) if pattern else None
        self._event = anyio.Event()

    def see(self, line: str) -> None:
        """Gives the hint if the line matches."""
        if self._pattern and self._pattern.search(line):
            self._event.set()

    async def sleep(self, delay_s: float) -> bool:
        """Sleeps for the delay or until the hint; returns whether it was the hint, and forgets it."""
        with anyio.move_on_after(delay_s):
            await self._event.wait()
        hinted = self._event.is_set()
        if hinted:
            self._event = anyio.Event()
        return hinted


@dataclass(slots=True, kw_only=True)
class Polling:
    """How the wait goes, readable at any time: probes sent, how many reached a server, what the last one said."""

    probes: int = 0
    answered: int = 0
    detail: str = "no probe was sent"


async def import_client() -> None:
    """Imports httpx in a thread, once: its 100 ms and more must not hold up the log pump or the sight of an exit."""
    if "httpx" not in sys.modules:
        await anyio.to_thread.run_sync(importlib.import_module, "httpx", abandon_on_cancel=True)


async def probe(client: httpx.AsyncClient, child: Child) -> str | None:
    """One health probe: None when the server says that it is up, else why not, redacted. Never raises for an answer."""
    health, limit_s = child.profile.health, child.profile.timeouts.probe_s
    try:
        status, body = await _get(client, health.path, limit_s)
    except Exception as error:  # noqa: BLE001  translated: httpx is not imported at module level
        return child.redact(_describe(error, limit_s))
    try:
        # Masked before it is judged: a judgement may quote, and cut, what it sees.
        why_not = health.accept(status, child.redact(body))
        return None if why_not is None else child.redact(str(why_not))
    except Exception as error:  # noqa: BLE001  the user's function may raise anything
        return child.redact(f"health.accept raised {type(error).__name__}: {error}")


def timed_out(why_not: str) -> bool:
    """Whether a probe failed because no answer came in time, which a server that works may do."""
    return why_not.startswith(_TIMED_OUT)


async def wait_up(child: Child, polling: Polling, hint: Hint, *, on_waiting: Callable[[int, str], None]) -> None:
    """Polls until the server is up *and* is ours *and* serves the model that the profile names.

    Args:
        child: the life in question.
        polling: kept up to date, for whoever gives up on the wait.
        hint: ends a pause early.
        on_waiting: (failures, detail), called every `health.log_every` failures.

    Raises:
        PortTaken: the one who answers is not a process of the child's session.
        WrongModel: the child is up without the model.
    """
    health = child.profile.health
    quick = 0  # the attempt at which the pace began anew
    others: list[int] = []
    looked_at = time.monotonic()

    def delay_s(state: RetryCallState) -> float:
        return min(health.poll_min_s * _GROWTH ** min(state.attempt_number - quick - 1, 64), health.slowest_poll_s)

    async def sleep(delay: float) -> None:
        nonlocal quick
        if await hint.sleep(delay):
            quick = polling.probes

    def report(state: RetryCallState) -> None:
        if state.attempt_number % health.log_every == 0:
            on_waiting(state.attempt_number, polling.detail)

    async def elsewhere() -> str:
        nonlocal others, looked_at
        if time.monotonic() - looked_at >= _LOOK_AROUND_S and child.pid:
            ports = await look(partial(processes.listening_ports, child.pid, child.cookie)) or ()
            others, looked_at = [port for port in ports if port != child.port], time.monotonic()
        return f" (the child listens on port {', '.join(map(str, others))} instead)" if others else ""

    await import_client()
    async with child.client(timeout_s=child.profile.timeouts.probe_s) as client:

        async def attempt() -> str | None:
            polling.probes += 1
            why_not = await probe(client, child)
            polling.answered += why_not != _REFUSED
            if why_not is None:
                why_not = await _check_owner(child) or await _check_model(client, child)
            elif why_not == _REFUSED:
                why_not += await elsewhere()
            polling.detail = why_not or "up"
            return why_not

        # No stop: the deadline is the lifecycle's, which races this wait against everything else that can happen.
        retrying = AsyncRetrying(
            sleep=sleep, wait=delay_s, retry=retry_if_result(lambda why_not: why_not is not None), before_sleep=report
        )
        await retrying(attempt)


async def get_text(client: httpx.AsyncClient, path: str, limit_s: float) -> str | None:
    """The body of a 200 answer, else None. Never raises for an answer."""
    try:
        status, body = await _get(client, path, limit_s)
    except Exception as error:  # noqa: BLE001  translated: httpx is not imported at module level
        _describe(error, limit_s)
        return None
    return body if status == 200 else None


async def foreign_owner(child: Child) -> processes.Owner | None:
    """Somebody else who receives connections to the child's address; None: nobody, or /proc does not tell.

    Several may share a port (SO_REUSEPORT): then none is safe. OSError or RuntimeError: we have no means to look.
    """
    assert child.pid
    ask = partial(processes.owners, child.port, child.pid, child.cookie, host=child.host)
    owners = await anyio.to_thread.run_sync(ask, abandon_on_cancel=True) if processes.AVAILABLE else []
    return next((owner for owner in owners if not owner.mine), None)


async def _check_owner(child: Child) -> str | None:
    try:
        owner = await foreign_owner(child)
    except (OSError, RuntimeError) as error:
        if why_not := told(error):
            return why_not
        raise
    if owner is not None:
        raise PortTaken(
            host=child.profile.host,
            port=child.port,
            pid=owner.pid,
            command=owner.command(child.redact),
            waited_s=0.0,
        )
    return None


async def _check_model(client: httpx.AsyncClient, child: Child) -> str | None:
    health, limit_s = child.profile.health, child.profile.timeouts.probe_s
    if health.model_id is None:
        return None
    try:
        status, body = await _get(client, health.identity_path, limit_s)
    except Exception as error:  # noqa: BLE001  translated: httpx is not imported at module level
        return child.redact(f"{health.identity_path}: {_describe(error, limit_s)}")
    if status in (401, 403, 404):
        seen = f"{health.identity_path} answers HTTP {status}"
    elif status != 200:
        return f"{health.identity_path}: HTTP {status}"
    else:
        names = _model_names(body)
        if health.model_id in names:
            return None
        seen = f"it lists {', '.join(map(repr, sorted(names))) or 'no model'}"
    raise WrongModel(wanted=health.model_id, seen=child.redact(seen), waited_s=0.0)


def _model_names(body: str) -> set[str]:
    """Names in an OpenAI model list; a model that a router lists but has not loaded does not count."""
    try:
        entries = json.loads(body)["data"]
        names: set[str] = set()
        for entry in entries:
            status = entry.get("status")
            if not isinstance(status, dict) or status.get("value", "loaded") == "loaded":
                names |= {entry["id"], *entry.get("aliases", ())}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return set()
    return {name for name in names if isinstance(name, str)}


async def _get(client: httpx.AsyncClient, path: str, limit_s: float) -> tuple[int, str]:
    """GET within a limit for the whole exchange (httpx's own is per operation) and a bound on the body."""
    with anyio.fail_after(limit_s):
        async with client.stream("GET", path) as response:
            body = bytearray()
            async for chunk in response.aiter_bytes():
                if len(body) < _MAX_BODY_BYTES:  # no break: Trio minds a generator that is dropped half-way
                    body += chunk
            return response.status_code, body.decode("utf-8", "replace")


def _describe(error: Exception, limit_s: float) -> str:
    import httpx

    if lack := told(error):
        return lack
    match error:
        case TimeoutError() | httpx.TimeoutException():
            return f"{_TIMED_OUT} {limit_s:g} s"
        case httpx.ConnectError():
            return _REFUSED
        case httpx.HTTPError() | OSError():
            return f"{type(error).__name__}: {error}"
    raise error
