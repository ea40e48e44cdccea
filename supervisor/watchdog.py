"""Hang detection, armed by the lifecycle only after READY or after a resume.

A crash needs no watching: the process's exit ends the lifecycle's phase at once. A hang does: llama.cpp, vLLM and
SGLang have all answered `/health` with 200 while completions hung (see llama.cpp#28829). Hence an occasional real
inference, skipped while real traffic moves the server's own counters.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import anyio

from supervisor.contract import Child, Step
from supervisor.health import get_text, probe


@dataclass(slots=True, kw_only=True)
class Watchdog:
    """Checks one child until it is given up.

    Attributes:
        child: the life to watch.
        steps: tiny real inferences.
        run_step: runs one with its deadline; returns why it failed, or None.
    """

    child: Child
    steps: Sequence[Step]
    run_step: Callable[[Step], Awaitable[str | None]]
    _misses: int = field(default=0, init=False)

    async def until_unresponsive(self) -> tuple[int, str]:
        """Returns (failed checks in a row, what the last one said). Holds no connection between two checks.

        Misses are counted, not timed: a clock that jumps makes no child unresponsive. Cancellation disarms it.
        """
        liveness = self.child.profile.liveness
        worked_at, before = time.monotonic(), await self._counters()
        while True:
            await anyio.sleep(liveness.period_s)
            async with self.child.client(timeout_s=self.child.profile.timeouts.probe_s) as client:
                why_not = await probe(client, self.child)
            if why_not is None and self.steps and time.monotonic() - worked_at >= liveness.inference_every_s:
                counters = await self._counters()
                if counters is None or counters == before:
                    why_not = await self._infer()
                    counters = await self._counters()
                if why_not is None:
                    worked_at, before = time.monotonic(), counters
            self._misses = 0 if why_not is None else self._misses + 1
            if why_not is not None and self._misses >= liveness.misses:
                return self._misses, why_not

    async def _infer(self) -> str | None:
        for step in self.steps:
            before = await self._counters()
            why_not = await self.run_step(step)
            if why_not is not None:
                # A server that is merely busy makes our request wait, but its counters move meanwhile.
                after = await self._counters()
                return None if after is not None and after != before else f"step {step.name!r}: {why_not}"
        return None

    async def _counters(self) -> str | None:
        liveness = self.child.profile.liveness
        if liveness.counters_path is None or liveness.counters_pattern is None:
            return None
        async with self.child.client(timeout_s=self.child.profile.timeouts.probe_s) as client:
            text = await get_text(client, liveness.counters_path, self.child.profile.timeouts.probe_s)
        return None if text is None else "\n".join(m[0] for m in re.finditer(liveness.counters_pattern, text)) or None
