"""The counters by which an engine shows that it generates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import anyio
from tenacity import AsyncRetrying, RetryError, retry_if_result, stop_after_delay, wait_fixed

from hooks.http.ask import ask
from hooks.http.dialect import Unsupported

if TYPE_CHECKING:
    from collections.abc import Mapping

    from supervisor.child import Child

__all__ = ["moved", "token_counters"]

_MOVED_S: Final = 3.0  # a counter may be updated a moment after the answer


async def token_counters(child: Child) -> Mapping[str, float]:
    """The engine's counters of tokens, by name.

    Raises:
        Unsupported: the engine has no such counters.
        BadAnswer: the page is missing, or holds no such counter.
    """
    dialect = child.profile.dialect
    if dialect.token_counters is None:
        raise Unsupported(f"the engine ({dialect.engine}) has no counters of tokens")
    path = dialect.token_counters.path
    answer = await ask(child, path)
    hint = f" ({dialect.metrics_hint})" if dialect.metrics_hint else ""
    if answer.status != 200:
        raise answer.bad(f"{path} answered HTTP {answer.status}{hint}")
    found = dialect.token_counters.read(answer.body)
    if not found:
        raise answer.bad(f"{path} holds no counter of tokens, or one without a number{hint}")
    return found


async def moved(child: Child, before: Mapping[str, float]) -> dict[str, float]:
    """How much each counter has grown, as soon as one has; empty when none grows within 3 s."""

    async def look() -> dict[str, float]:
        after = await token_counters(child)
        return {name: value - before.get(name, 0.0) for name, value in after.items() if value > before.get(name, 0.0)}

    try:
        return await AsyncRetrying(
            sleep=anyio.sleep,
            wait=wait_fixed(0.1),
            stop=stop_after_delay(_MOVED_S),
            retry=retry_if_result(lambda grown: not grown),
        )(look)
    except RetryError:
        return {}
