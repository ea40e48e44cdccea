"""The wake of an endpoint that scaled to zero: how long the platform took, and how long the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from hooks.http.answer import BadAnswer
from hooks.http.counters import moved, token_counters
from hooks.http.dialect import Unsupported, loading_words
from hooks.http.retry import Patience, words
from hooks.http.stream import stream
from hooks.smoke.checks import Doubt, Passed, repeatable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from hooks.http.endpoint import Visit
    from hooks.http.stream import Stream

__all__ = ["Wake"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wake:
    """Lets an endpoint idle, and times the first token of the request that wakes it.

    The time has two parts. `platform_s`: 502, 503, 504 or no connection, while a container comes up. `server_s`: from
    the request that got through to its first token. A platform that holds the request back instead of refusing it has
    its time in `server_s`; the same request asked warm, before the idle time, shows how much that is.

    Whether the server went away at all is read from its token counters: they go on in a server that stayed, and fall
    back in one that was restored or started anew.

    Attributes:
        idle_s: seconds without traffic; more than the platform's scaledown window.
        deadline_s: for the wake, seconds.
        limit_s: longer than so many seconds to the first token fails; None: any time is good.
        sleep: lets the idle time pass.
    """

    idle_s: float
    deadline_s: float
    limit_s: float | None = None
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep

    async def __call__(self, visit: Visit) -> Passed:
        """Ask warm, idle, wake.

        Raises:
            BadAnswer: an answer that waiting does not cure.
            NeverAnswered: it did not come up again.
            Doubt: it took longer than `limit_s`.
        """
        body = repeatable(visit, "Write one sentence about the moon.", 16)
        warm = await stream(visit, body)
        before = await _counters(visit)
        await self.sleep(self.idle_s)

        async def attempt(left_s: float) -> Stream:
            return await stream(visit, body, timeout_s=left_s)

        woken = await Patience(deadline_s=self.deadline_s, loading=loading_words(visit.profile.dialect)).until(attempt)
        server_s = woken.value.first_token_s
        total_s = woken.wait_s + server_s
        refused = f" ({words(woken.refusals)})" if woken.refusals else ""
        detail = (
            f"after {self.idle_s:g} s idle the first token came after {total_s:.2f} s: "
            f"platform {woken.wait_s:.2f} s{refused}, server {server_s:.2f} s (warm: {warm.first_token_s:.2f} s)"
        )
        if self.limit_s is not None and total_s > self.limit_s:
            raise Doubt(f"{detail}; more than {self.limit_s:g} s, so perhaps a cold start instead of a restore")
        stayed = None if before is None else bool(await _grown(visit, before))
        if stayed:
            detail += ". The server never went away, so this is no wake: idle longer than the scaledown window"
        return Passed(
            detail=detail,
            numbers={
                "idle_s": self.idle_s,
                "first_token_s": total_s,
                "platform_s": woken.wait_s,
                "server_s": server_s,
                "warm_first_token_s": warm.first_token_s,
                "stayed_up": stayed,
            },
        )


async def _counters(visit: Visit) -> Mapping[str, float] | None:
    try:
        return await token_counters(visit)
    except (BadAnswer, Unsupported):
        return None  # whether there are counters is for another check to judge


async def _grown(visit: Visit, before: Mapping[str, float]) -> Mapping[str, float]:
    """In a new process every counter began anew, and is no higher than after the same request before."""
    try:
        return await moved(visit, before)
    except BadAnswer:
        return {}
