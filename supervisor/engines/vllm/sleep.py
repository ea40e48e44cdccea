"""Steps that put vLLM to sleep and wake it, in the order without which it answers garbage.

Read in vLLM 0.32.0 (entrypoints/serve/dev/sleep/api_router.py, v1/engine/core.py). The level is read from the query
alone. Level 1 keeps the weights in host memory and wakes as a whole. Level 2 drops them: they are read from their files
again while only the weights are awake, before the KV cache takes the rest of the memory; a wake without that answers
`!!!!` and says nothing. `/wake_up` with a tag that is not asleep answers 200 as well. So each Step asks `/is_sleeping`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from supervisor.engines.vllm.dialect import sleeping
from supervisor.engines.vllm.guard.warmboot_vllm_guard import ADMIN_KEY

if TYPE_CHECKING:
    import httpx

    from supervisor.child import Child

__all__ = ["IS_SLEEPING", "EngineRefused", "Level", "Sleep", "Wake", "bearer", "expect"]

Level = Literal[1, 2]

IS_SLEEPING: Final = "/is_sleeping"
_SHOWN: Final = 300


@dataclass(eq=False)
class EngineRefused(Exception):
    """The engine did not do what it was asked to.

    Attributes:
        request: what it was asked.
        seen: what it answered, or is, instead.
    """

    request: str
    seen: str

    def __post_init__(self) -> None:
        super().__init__(self.request, self.seen)  # pickle rebuilds an exception from its args

    def __str__(self) -> str:
        return f"{self.request}: {self.seen}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sleep:
    """Puts the engine to sleep once no request is in flight, and makes sure that it is."""

    level: Level
    name: str = "vllm-sleep"
    deadline_s: float | None = None

    async def __call__(self, child: Child) -> None:
        """Ask for it, and ask whether it is so.

        Raises:
            EngineRefused: it does not sleep.
        """
        async with child.client(timeout_s=self.deadline_s) as client:
            await _post(child, client, f"/sleep?level={self.level}&mode=wait")
            await expect(child, client, asleep=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wake:
    """Wakes the engine from this level, and makes sure that it is awake."""

    level: Level
    name: str = "vllm-wake"
    deadline_s: float | None = None

    async def __call__(self, child: Child) -> None:
        """Ask for it, in the order that the level needs, and ask whether it is so.

        Raises:
            EngineRefused: a part was refused, or it sleeps on.
        """
        async with child.client(timeout_s=self.deadline_s) as client:
            if self.level == 1:
                await _post(child, client, "/wake_up")
            else:
                await _post(child, client, "/wake_up?tags=weights")
                await _post(child, client, "/collective_rpc", {"method": "reload_weights"})
                await _post(child, client, "/wake_up?tags=kv_cache")
                await _post(child, client, "/reset_prefix_cache")
            await expect(child, client, asleep=False)


def bearer(key: str) -> dict[str, str]:
    """Return the header that carries a key."""
    return {"Authorization": f"Bearer {key}"}


def _admin(child: Child) -> dict[str, str]:
    """The header that opens the administration."""
    key = child.env.get(ADMIN_KEY)
    if key is None:
        words = f"the profile has no {ADMIN_KEY}: only Vllm(sleep=...) makes one whose engine may be put to sleep"
        raise EngineRefused("sleep", words)
    return bearer(key)


async def _post(child: Child, client: httpx.AsyncClient, path: str, body: dict[str, Any] | None = None) -> None:
    answer = await client.post(path, headers=_admin(child), json=body)
    if answer.status_code != 200:
        said = child.redact(" ".join(answer.text.split()))[:_SHOWN]
        raise EngineRefused(f"POST {path}", f"HTTP {answer.status_code}: {said or 'empty body'}")


async def expect(child: Child, client: httpx.AsyncClient, *, asleep: bool) -> None:
    """Make sure of the engine's state by its own word."""
    answer = await client.get(IS_SLEEPING, headers=_admin(child))
    state = sleeping(answer.text) if answer.status_code == 200 else None
    if state is None:
        said = child.redact(" ".join(answer.text.split()))[:_SHOWN]
        raise EngineRefused(f"GET {IS_SLEEPING}", f"HTTP {answer.status_code}: {said or 'empty body'}")
    if state is not asleep:
        raise EngineRefused(f"GET {IS_SLEEPING}", f"the engine {'is awake' if asleep else 'still sleeps'}")
