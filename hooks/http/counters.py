"""What a server counts of its own work: the token counters of its Prometheus page."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Final

import anyio
from tenacity import AsyncRetrying, RetryError, retry_if_result, stop_after_delay, wait_fixed

from hooks.http.answer import ask
from hooks.http.text import shorten

if TYPE_CHECKING:
    from collections.abc import Mapping

    from supervisor.child import Child

__all__ = ["moved", "token_counters"]

# llamacpp:tokens_predicted_total, vllm:generation_tokens_total{model_name="..."}, sglang:prompt_tokens_total{...}
_COUNTER: Final = re.compile(r"(?m)^([A-Za-z_:][\w:]*token[\w:]*_total)(?:\{[^}\n]*\})?[ \t]+(\S+)")
_MOVED_S: Final = 3.0  # a counter may be updated a moment after the answer


async def token_counters(child: Child) -> Mapping[str, float]:
    """`/metrics` counters of tokens, by name, labels added up.

    Raises:
        BadAnswer: there is no such page, or it holds no such counter.
    """
    answer = await ask(child, "/metrics")
    if answer.status != 200:
        raise answer.bad(f"/metrics answered HTTP {answer.status} (llama-server needs --metrics)")
    found: dict[str, float] = {}
    for name, value in _COUNTER.findall(answer.body):
        try:
            found[name] = found.get(name, 0.0) + float(value)
        except ValueError:
            raise answer.bad(f"{name} is {shorten(value, 40)}, not a number") from None
    found = {name: value for name, value in found.items() if "seconds" not in name}
    if not found or not all(map(math.isfinite, found.values())):
        raise answer.bad("/metrics holds no counter of tokens")
    return found


async def moved(child: Child, before: Mapping[str, float]) -> dict[str, float]:
    """How much each counter grew, once one did; empty when none did for 3 s."""

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
