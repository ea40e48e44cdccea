"""Retries while a server's container is still coming up: each refusal is counted, and the wait is timed."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import anyio
import httpx
from tenacity import AsyncRetrying, retry_if_exception_type, wait_fixed, wait_random_exponential

from hooks.http.answer import BadAnswer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

__all__ = ["NeverAnswered", "Patience", "Persisted"]

T = TypeVar("T")

TRANSIENT: Final = (502, 503, 504)
_HOPELESS: Final = ("CERTIFICATE_VERIFY_FAILED", "WRONG_VERSION_NUMBER")  # of TLS; waiting cures neither


class _NotYet(Exception):
    """A refusal that may pass."""


@dataclass(eq=False)
class NeverAnswered(Exception):
    """The deadline passed and only refusals came.

    Attributes:
        waited_s: how long.
        refusals: what came how often, in words.
    """

    waited_s: float
    refusals: str

    def __post_init__(self) -> None:
        super().__init__(self.waited_s, self.refusals)  # pickle rebuilds an exception from its args

    def __str__(self) -> str:
        return f"no answer within {self.waited_s:.1f} s: {self.refusals}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Persisted(Generic[T]):
    """What the attempt that got through returned, and what came before it.

    Attributes:
        value: of the attempt.
        wait_s: from the first attempt to the start of the last one, pauses included; 0 when the first one got through.
        refusals: what came how often.
    """

    value: T
    wait_s: float
    refusals: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Retries what a platform answers while it starts a container: 502, 503, 504, and no or a broken connection.

    Pauses begin at up to 0.2 s and double, 4 s at most; they are random, so that many clients do not come together.

    Attributes:
        deadline_s: from the first attempt on; it also ends an attempt that hangs.
        loading: words of engines that are still loading, by which a refusal of theirs is named.
    """

    deadline_s: float
    loading: tuple[str, ...] = ()

    async def until(self, attempt: Callable[[float], Awaitable[T]]) -> Persisted[T]:
        """Calls `attempt` until it gets through.

        Args:
            attempt: takes the seconds that are left; a `BadAnswer` of it is a refusal, or final.

        Raises:
            NeverAnswered: the deadline passed.
            BadAnswer: an attempt failed in a way that waiting does not cure.
        """
        refusals: Counter[str] = Counter()
        began = last = time.monotonic()

        async def once() -> T:
            nonlocal last
            last = time.monotonic()
            try:
                return await attempt(max(began + self.deadline_s - last, 0.1))
            except BadAnswer as error:
                if (why := self._refusal(error)) is None:
                    raise
                refusals[why] += 1
                raise _NotYet from error

        # No stop: it would give up before a pause that crosses the deadline, and the cancel scope ends a hang as well.
        retrying = AsyncRetrying(
            sleep=anyio.sleep,
            wait=wait_fixed(0.02) + wait_random_exponential(multiplier=0.2, max=4),
            retry=retry_if_exception_type(_NotYet),
        )
        with anyio.move_on_after(self.deadline_s):
            value: T = await retrying(once)
            return Persisted(value=value, wait_s=last - began if refusals else 0.0, refusals=dict(refusals))
        raise NeverAnswered(time.monotonic() - began, words(refusals) or "the request hung")

    def _refusal(self, error: BadAnswer) -> str | None:
        """What kind of refusal it is; None when waiting is no use."""
        cause = error.__cause__
        if error.status in TRANSIENT:
            says = next((f" ({text})" for text in self.loading if text in error.body), "")
            return f"HTTP {error.status}{says}"
        if isinstance(cause, httpx.ConnectError | httpx.ConnectTimeout):
            return None if any(mark in _all_said(cause) for mark in _HOPELESS) else "no connection"
        if isinstance(cause, httpx.NetworkError | httpx.RemoteProtocolError | httpx.ProxyError):
            return "the connection broke"
        return None


def words(refusals: Mapping[str, int]) -> str:
    """Refusals for a person: `3 x HTTP 503, 1 x no connection`."""
    return ", ".join(f"{count} x {why}" for why, count in refusals.items())


def _all_said(error: BaseException | None) -> str:
    """An error's words and those of its causes: Trio's own errors of TLS are blank, and only the cause speaks."""
    return f"{error} {_all_said(error.__cause__ or error.__context__)}" if error else ""
