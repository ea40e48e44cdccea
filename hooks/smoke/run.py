"""A smoke test of any OpenAI-compatible endpoint: is it up, closed to strangers, and does every path of it work.

The first row is `wait`: while a container comes up, 502, 503, 504 and broken connections are retried with growing
pauses. The checks after it retry nothing: an endpoint that is up and then refuses is what a smoke test should find.

Keys travel as `Authorization: Bearer KEY`, the header that OpenAI clients send.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio

from hooks.auth import AuthError
from hooks.http.answer import Answer, BadAnswer
from hooks.http.ask import ask
from hooks.http.dialect import Unsupported, loading_words
from hooks.http.retry import TRANSIENT, NeverAnswered, Patience, words
from hooks.smoke.checks import CHECKS, Doubt, Moot, Passed
from hooks.smoke.report import Outcome, Row, SmokeReport
from hooks.smoke.wake import Wake
from supervisor.errors import require

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from hooks.http.endpoint import Endpoint, Visit
    from supervisor.dialect import Dialect

__all__ = ["NAMES", "Options", "smoke"]

_WAKE: Final = "wake"
_EVIDENCE: Final = 6
NAMES: Final = (*CHECKS, _WAKE)
"""The checks, in the order in which they run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What to check, and for how long to try.

    Attributes:
        skip, only: names of checks, see `NAMES`. `image` is skipped by itself on a model without vision, `thinking` on
            one that does not think; named in `only` or in `must`, they fail.
        slots: requests that the server serves at once; None: as the server says.
        deadline_s: for the endpoint to come up, at first and again after the idle time.
        check_s: one check at most, without the idle time and the wait for the wake.
        idle_s: so long without traffic before the wake; None: no wake.
        wake_limit_s: the first token of the wake may take so long, the platform's part included; None: not judged.
        health_path: what the wait asks; any answer but 502, 503 and 504 is one (a server without the path says 404).

    Raises:
        ProfileError: an unknown name, nothing left to check, a number out of range.
    """

    skip: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    must: tuple[str, ...] = ()
    slots: int | None = None
    deadline_s: float = 300.0
    check_s: float = 600.0
    idle_s: float | None = None
    wake_limit_s: float | None = None
    health_path: str = "/health"

    def __post_init__(self) -> None:
        for field in ("skip", "only", "must"):
            for name in getattr(self, field):
                require(name in NAMES, field, name, f"among {', '.join(NAMES)}")
        for field in ("deadline_s", "check_s", "idle_s", "wake_limit_s"):
            value = getattr(self, field)
            require(value is None or 0 < value < math.inf, field, value, "seconds, more than 0")
        require(self.slots is None or 1 <= self.slots <= 1024, "slots", self.slots, "from 1 to 1024")
        require(self.idle_s is not None or _WAKE not in self.only, "only", _WAKE, "given together with an idle time")
        require(self.idle_s is not None or self.wake_limit_s is None, "wake_limit_s", self.wake_limit_s, "with idle_s")
        require(self.health_path.startswith("/"), "health_path", self.health_path, "a path that begins with /")
        require(any(self.why_not(name) is None for name in NAMES), "skip", self.skip, "such that a check is left")

    def why_not(self, name: str) -> str | None:
        """Why the user does not want this check; None when it is wanted."""
        if name in self.skip:
            return f"as asked (skip {name})"
        if self.only and name not in self.only:
            return f"as asked (only {', '.join(self.only)})"
        if name == _WAKE and self.idle_s is None:
            return "as asked (no idle time was given)"
        return None


async def smoke(
    endpoint: Endpoint,
    options: Options,
    *,
    dialects: Sequence[Dialect] = (),
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    on_start: Callable[[str], None] = lambda _: None,
) -> SmokeReport:
    """Waits for the endpoint, then runs the checks one by one; a failed one does not stop the others.

    Args:
        endpoint: what to test.
        options: what to check.
        dialects: of engines that may answer there; the list of models says which one it is. An endpoint whose own
            dialect is set is not asked.
        sleep: lets the idle time pass, seconds.
        on_start: called with the name of each check before it runs.

    Returns:
        A row for `wait` and one for each check, in order; only `wait` when the endpoint never came up. No failure of
        the endpoint raises. Cancellation leaves no connection open.
    """
    began = time.monotonic()
    on_start("wait")
    rows = [await _row("wait", endpoint.visit(), partial(_wait, options=options, dialects=dialects), math.inf)]
    if rows[0].outcome == "ok":
        endpoint = await _recognised(endpoint, dialects)
        for name in NAMES:
            if reason := options.why_not(name):
                rows.append(Row(name=name, outcome="skipped", took_s=0.0, detail=reason))
                continue
            on_start(name)
            check, limit_s = _check_of(name, options, sleep)
            row = await _row(name, endpoint.visit(), check, limit_s)
            # What the user named is not skipped.
            insisted = name in (*options.only, *options.must)
            rows.append(replace(row, outcome="failed") if row.outcome == "skipped" and insisted else row)
    return SmokeReport(url=endpoint.url, model=endpoint.model, rows=tuple(rows), took_s=time.monotonic() - began)


def _check_of(
    name: str, options: Options, sleep: Callable[[float], Awaitable[None]]
) -> tuple[Callable[[Visit], Awaitable[Passed]], float]:
    """A check, and the seconds that it may take."""
    if name != _WAKE:
        check = CHECKS[name]
        return lambda visit: check(visit, options.slots), options.check_s
    assert options.idle_s is not None
    wake = Wake(idle_s=options.idle_s, deadline_s=options.deadline_s, limit_s=options.wake_limit_s, sleep=sleep)
    return wake, options.check_s + options.idle_s + options.deadline_s


async def _row(name: str, visit: Visit, check: Callable[[Visit], Awaitable[Passed]], limit_s: float) -> Row:
    """Runs one check and reports its outcome, whatever it is."""
    began = time.monotonic()
    evidence: tuple[str, ...] | None = None
    finding: Passed | None = None
    outcome: Outcome = "failed"
    try:
        with anyio.fail_after(None if limit_s == math.inf else limit_s):
            finding = await check(visit)
            detail, outcome = finding.detail, "ok"
    except BadAnswer as error:
        detail = error.reason
    except AuthError as error:
        detail, evidence = error.reason, error.seen
    except (Doubt, NeverAnswered) as error:
        detail = str(error)
    except (Moot, Unsupported) as error:
        detail, outcome = str(error), "skipped"
    except TimeoutError:
        detail = f"not done after {limit_s:g} s"
    return Row(
        name=name,
        outcome=outcome,
        took_s=time.monotonic() - began,
        detail=detail,
        evidence=evidence or tuple(exchange.show(visit.redact) for exchange in visit.exchanges[-_EVIDENCE:]),
        numbers=finding.numbers if finding else {},
    )


async def _wait(visit: Visit, options: Options, dialects: Sequence[Dialect]) -> Passed:
    """Wait until the endpoint answers. A refused key is an answer."""

    async def attempt(left_s: float) -> Answer:
        answer = await ask(visit, options.health_path, timeout_s=left_s)
        if answer.status in TRANSIENT:
            raise answer.bad("not up")
        return answer

    patience = Patience(deadline_s=options.deadline_s, loading=loading_words(visit.profile.dialect, *dialects))
    up = await patience.until(attempt)
    before = f"after {up.wait_s:.2f} s ({words(up.refusals)})" if up.refusals else "at once"
    return Passed(
        detail=f"{options.health_path} answered HTTP {up.value.status} {before}",
        numbers={"wait_s": up.wait_s, "refusals": sum(up.refusals.values())},
    )


async def _recognised(endpoint: Endpoint, dialects: Sequence[Dialect]) -> Endpoint:
    """The endpoint with its engine's dialect and the name of a model, as far as its list of models tells them.

    What it does not tell is left as it was; the check `model` says what is wrong with the list.
    """
    reading = endpoint.visit().profile.dialect.models
    if reading is None or (endpoint.dialect and endpoint.model):
        return endpoint
    try:
        answer = await ask(endpoint.visit(), reading.path)
        entries = answer.data().get("data")
    except BadAnswer:
        return endpoint
    names = reading.read(answer.body) or ()
    entries = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    owners = [entry.get("owned_by") for entry in entries]
    dialect = endpoint.dialect or next((dialect for dialect in dialects if dialect.owned_by in owners), None)
    model = endpoint.model or next((name for name in names if name.strip()), None)
    if dialect and dialect.several:
        dialect = dialect.several(answer.body, model) or dialect
    return replace(endpoint, dialect=dialect, model=model)
