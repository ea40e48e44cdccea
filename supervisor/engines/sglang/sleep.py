"""Steps by which SGLang gives its GPU memory back and takes it again, in the order without which it dies.

Read in SGLang 0.5.23 (managers/scheduler_components/weight_updater.py, managers/tokenizer_manager.py). The release
asserts that the scheduler is idle, and the assertion ends the server. Nothing guards a released engine: a generation,
and a health probe that generates, reaches memory that is not there. A second resume raises KeyError in the scheduler,
which ends the server too (seen). So generation is paused first (requests then wait in the server, whoever sends them),
idleness is proved by a flush of the prefix cache, which an engine that is not idle refuses, and what was released is
remembered.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from supervisor.engines.sglang.private import ADMIN_KEY
from supervisor.steps import step

if TYPE_CHECKING:
    import httpx

    from supervisor.child import Child
    from supervisor.steps import Step

__all__ = ["EngineRefused", "MemorySaver"]

_RELEASE: Final = "/release_memory_occupation"
_SHOWN: Final = 300


@dataclass(eq=False)
class EngineRefused(Exception):
    """The engine did not do what it was asked to.

    Attributes:
        request: what it was asked.
        seen: what it answered instead.
    """

    request: str
    seen: str

    def __post_init__(self) -> None:
        super().__init__(self.request, self.seen)  # pickle rebuilds an exception from its args

    def __str__(self) -> str:
        return f"{self.request}: {self.seen}"


@dataclass(slots=True)
class _Asleep:
    """What was done to which child, by its cookie and pid."""

    paused: tuple[str | None, int | None] | None = None
    released: tuple[str | None, int | None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySaver:
    """Releases the GPU's memory at the seal and resumes it; the weights wait in host memory.

    Attributes:
        idle_s: how long requests that are in flight when the seal begins may take.
        deadline_s: of each of the two Steps; None: the profile's `timeouts.step_s`.
    """

    idle_s: float = 10.0
    deadline_s: float | None = None
    _state: _Asleep = field(default_factory=_Asleep, init=False, repr=False, compare=False)

    @property
    def closed(self) -> Step:
        """For `warmup`: proves that neither strangers nor clients may release the memory.

        Raises, when called:
            EngineRefused: one of them may.
        """
        return step("sglang-closed", self._closed, deadline_s=self.deadline_s)

    @property
    def release(self) -> Step:
        """For `sleep`: pauses generation, proves that the engine is idle, and releases everything.

        Raises, when called:
            EngineRefused: requests are running, or a route answers otherwise than it should.
        """
        return step("sglang-release", self._release, deadline_s=self.deadline_s)

    @property
    def resume(self) -> Step:
        """For `wake`: takes back what was released, once, and goes on generating. Harmless on an engine that is awake.

        Raises, when called:
            EngineRefused: a route answers otherwise than it should.
        """
        return step("sglang-resume", self._resume, deadline_s=self.deadline_s)

    async def _closed(self, child: Child) -> None:
        for with_key, who in ((False, "a stranger"), (True, "a client")):
            async with child.client(timeout_s=self.deadline_s, with_key=with_key) as client:
                answer = await client.post(_RELEASE)  # without the body that it wants, so that nothing is released
            if answer.status_code not in (401, 403):
                words = f"HTTP {answer.status_code} instead of 401: {who} may take the model's memory away"
                raise EngineRefused(f"POST {_RELEASE} as {who}", words)

    async def _release(self, child: Child) -> None:
        this = (child.cookie, child.pid)
        async with child.client(timeout_s=self.deadline_s) as client:
            await _post(child, client, f"/flush_cache?timeout={self.idle_s:g}")
            self._state.paused = this
            await _post(child, client, "/pause_generation", {"mode": "in_place"})
            # Once more: a request may have come between the two, and stays now, neither running nor answered.
            await _post(child, client, "/flush_cache")
            self._state.released = this
            await _post(child, client, _RELEASE, {})

    async def _resume(self, child: Child) -> None:
        this, state = (child.cookie, child.pid), self._state
        async with child.client(timeout_s=self.deadline_s) as client:
            if state.released == this:
                state.released = None  # before the request: a second one would end the server
                await _post(child, client, "/resume_memory_occupation", {})
            if state.paused == this:
                state.paused = None
                await _post(child, client, "/continue_generation", {})


async def _post(child: Child, client: httpx.AsyncClient, path: str, body: dict[str, Any] | None = None) -> None:
    key = child.env.get(ADMIN_KEY)
    if key is None:
        words = f"the profile has no {ADMIN_KEY}: only Sglang(memory_saver=True) makes one that may release its memory"
        raise EngineRefused(f"POST {path}", words)
    answer = await client.post(path, headers={"Authorization": f"Bearer {key}"}, json=body)
    if answer.status_code != 200:
        said = child.redact(" ".join(answer.text.split()))[:_SHOWN]
        raise EngineRefused(f"POST {path}", f"HTTP {answer.status_code}: {said or 'empty body'}")
