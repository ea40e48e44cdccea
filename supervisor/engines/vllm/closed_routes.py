"""A Step that proves at the warmup that vLLM's open routes are closed to strangers."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from supervisor.engines.vllm.guard import warmboot_vllm_guard as guard
from supervisor.engines.vllm.sleep import IS_SLEEPING, bearer, expect

if TYPE_CHECKING:
    import httpx

    from supervisor.child import Child

__all__ = ["GUARD", "GUARD_FOLDER", "ClosedRoutes", "OpenRoute"]

GUARD_FOLDER: Final = Path(guard.__file__).parent
"""Goes on `PYTHONPATH` of vLLM; it holds one file."""

GUARD: Final = f"{guard.__name__.rpartition('.')[2]}.{guard.Guard.__name__}"
"""What `--middleware` takes."""

# Asked with GET, which none of them but the first answers: a route that is there and open says 405.
ADMINISTRATION: Final = (IS_SLEEPING, "/sleep", "/wake_up", "/collective_rpc", "/reset_prefix_cache")
INVOCATIONS: Final = "/invocations"
MODELS: Final = "/v1/models"
_REFUSED: Final = (401, 403)
_ABSENT: Final = 404
_REMEDY: Final = (
    "vLLM answers whoever reaches its port on routes that its own key does not cover. Start it by Vllm(...), or add "
    f"--middleware {GUARD} to its command and {GUARD_FOLDER} to its PYTHONPATH. Seen:"
)


@dataclass(eq=False)
class OpenRoute(Exception):
    """Somebody without the key of a route gets in.

    Attributes:
        seen: each request that should have been refused, and what it got.
    """

    seen: tuple[str, ...]

    def __post_init__(self) -> None:
        super().__init__(self.seen)  # pickle rebuilds an exception from its args

    def __str__(self) -> str:
        return "\n    ".join((_REMEDY, *self.seen))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedRoutes:
    """Strangers reach neither the administration nor, where there is a key, `/invocations`.

    Attributes:
        sleeps: the administration must be there, and take its own key only: the clients' key does not open it either.
            Without it a route that is not there (404) is as good as a closed one.
    """

    sleeps: bool = False
    name: str = "vllm-closed-routes"
    deadline_s: float | None = None

    async def __call__(self, child: Child) -> None:
        """Knock on each route as each kind of stranger. Nothing of what is asked has an effect.

        Raises:
            OpenRoute: a stranger was not refused.
            EngineRefused: the administration refuses its own key.
        """
        key = child.profile.api_key
        strangers = {"without a key": {}, "with a wrong key": bearer(secrets.token_urlsafe(24))}
        async with child.client(timeout_s=self.deadline_s, with_key=False) as client:
            # A server may have a key that the profile does not know: of its environment, or of its command.
            keyed = key is not None or (await client.get(MODELS)).status_code in _REFUSED
            seen: list[str | None] = []
            for who, headers in strangers.items():
                seen += [await self._knock(client, "GET", path, who, headers) for path in ADMINISTRATION]
                if keyed:
                    seen.append(await self._knock(client, "POST", INVOCATIONS, who, headers))
            if self.sleeps and key:
                headers = bearer(key.reveal())
                seen.append(await self._knock(client, "GET", IS_SLEEPING, "with the clients' key", headers))
            if found := tuple(line for line in seen if line):
                raise OpenRoute(found)
            if self.sleeps:
                await expect(child, client, asleep=False)

    async def _knock(
        self, client: httpx.AsyncClient, method: str, path: str, who: str, headers: dict[str, str]
    ) -> str | None:
        """What is wrong with the answer, in a line; None: nothing."""
        status = (await client.request(method, path, headers=headers)).status_code
        absent = status == _ABSENT and not (self.sleeps and path in ADMINISTRATION)
        if status in _REFUSED or absent:
            return None
        return f"{method} {path} {who}: HTTP {status} instead of 401"
