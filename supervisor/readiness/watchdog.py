"""Hang detection, armed by the lifecycle only after READY or after a resume.

A crash needs no watching: the process's exit ends the lifecycle's phase at once. A hang does: llama.cpp, vLLM and
SGLang have all answered `/health` with 200 while completions hung (see llama.cpp#28829). Hence an occasional real
inference, skipped while real traffic moves the server's own counters, and while an engine sleeps of itself: an
inference would wake it, and its silence is no hang.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import anyio

from supervisor.child import Child
from supervisor.linux import listeners, processes, usage
from supervisor.linux.exhaustion import look
from supervisor.readiness.identity import foreign_owner, lost_model
from supervisor.readiness.probe import NotUp, Why, get_text, probe
from supervisor.steps import Step

_OWNER_EVERY: Final = 10  # checks between two looks at who listens
# A server with one thread answers no health probe while it works. Work is so much of a core, had or waited for (others
# may have the cores), or so many bytes a second, since the last check; a busy loop looks the same, so it excuses no
# more than so many times `Liveness.misses` checks.
_WORK_CPU: Final = 0.2
_WORK_BYTES_PER_S: Final = 1 << 20
_EXCUSES: Final = 10
# A Step that times out says less about a server that works: all its slots may be busy with long answers. Where counters
# do not tell (see `Liveness.counters_path`), work excuses so many times `Liveness.misses` Steps in a row.
_STEP_EXCUSES: Final = 4


@dataclass(slots=True, kw_only=True)
class Watchdog:
    """Checks one child until it is given up.

    Attributes:
        child: the life to watch.
        steps: tiny real inferences.
        run_step: runs one with its deadline; returns why it failed, or None.
        on_shortage: called once, with a few words, when this process is out of what a check needs.
        on_sleep: called with True when the engine is seen asleep, and with False when it is awake again.
    """

    child: Child
    steps: Sequence[Step]
    run_step: Callable[[Step], Awaitable[NotUp | None]]
    on_shortage: Callable[[str], None]
    on_sleep: Callable[[bool], None]
    _asleep: bool = field(default=False, init=False)
    _misses: int = field(default=0, init=False)
    _excused: int = field(default=0, init=False)
    _excused_steps: int = field(default=0, init=False)
    _reported: bool = field(default=False, init=False)

    async def until_unresponsive(self) -> tuple[int, str]:
        """Returns (failed checks in a row, what the last one said). Holds no connection between two checks.

        A probe that times out while the child's processes work is no miss, up to ten times `misses` in a row; nor is a
        Step, up to four times, where the server has no counters that would tell. A check that fails because *this
        process* is out of descriptors, threads or memory never is. Who listens is looked at every tenth check; a
        foreign listener is a miss, and looked for again at the next check.
        Misses are counted, not timed: a clock that jumps makes no child unresponsive. Cancellation disarms it.
        """
        liveness = self.child.profile.liveness
        worked_at, before = time.monotonic(), await self._counters()
        assert self.child.pid
        session = usage.Session(self.child.pid, self.child.cookie)
        used = await _usage(session)
        checks = 0
        foreign: NotUp | None = None
        while True:
            await anyio.sleep(liveness.period_s)
            async with self.child.client(timeout_s=self.child.profile.timeouts.probe_s) as client:
                failure = await probe(client, self.child) or await lost_model(client, self.child)
            checks += 1
            was, used = used, await _usage(session)
            if failure is not None and failure.why is Why.TIMED_OUT and _worked(was, used):
                self._excused += 1
                if self._excused <= _EXCUSES * liveness.misses:
                    continue
            elif failure is None:
                self._excused = 0
                owned = not self.child.profile.health.allow_foreign_listener
                if owned and (foreign is not None or checks % _OWNER_EVERY == 0):
                    failure = foreign = await self._foreign()
            due = self.steps and time.monotonic() - worked_at >= liveness.inference_every_s
            if failure is None and not await self._sleeps() and due:
                counters = await self._counters()
                if counters is None or counters == before:
                    failure = await self._infer(session)
                    counters = await self._counters()
                if failure is None:
                    worked_at, before = time.monotonic(), counters
            if failure is not None and failure.why is Why.BUSY:
                continue
            if failure is not None and failure.why is Why.OUT_OF_RESOURCES:
                if not self._reported:
                    self._reported = True
                    self.on_shortage(failure.detail)
                continue
            self._misses = 0 if failure is None else self._misses + 1
            if failure is not None and self._misses >= liveness.misses:
                return self._misses, failure.detail

    async def _foreign(self) -> NotUp | None:
        match await foreign_owner(self.child):
            case listeners.Owner() as owner:
                pid, command = owner.pid, owner.command(self.child.redact)
                who = f"pid {pid} ({command})" if pid else "a process that this user cannot see"
                return NotUp(why=Why.FOREIGN, detail=f"{who} listens on {self.child.host}:{self.child.port} too")
            case failure:
                return failure

    async def _infer(self, session: usage.Session) -> NotUp | None:
        for step in self.steps:
            before, used = await self._counters(), await _usage(session)
            failure = await self.run_step(step)
            if failure is None:
                self._excused_steps = 0
                continue
            if failure.why is Why.OUT_OF_RESOURCES:
                return failure
            # A server that is merely busy makes our request wait, but its counters move meanwhile.
            after = await self._counters()
            if after is not None and after != before:
                return None
            timed_out = after is None and failure.why is Why.TIMED_OUT
            if timed_out and _worked(used, await _usage(session)):
                self._excused_steps += 1
                if self._excused_steps <= _STEP_EXCUSES * self.child.profile.liveness.misses:
                    return NotUp(why=Why.BUSY, detail=failure.detail)
            return NotUp(why=failure.why, detail=f"step {step.name!r}: {failure.detail}")
        return None

    async def _sleeps(self) -> bool:
        reading = self.child.profile.dialect.asleep
        if reading is None:
            return False
        async with self.child.client(timeout_s=self.child.profile.timeouts.probe_s) as client:
            text = await get_text(client, self.child, reading.path)
        asleep = None if text is None else reading.read(text)
        if asleep is not None and asleep != self._asleep:  # an answer that does not tell changes nothing
            self._asleep = asleep
            self.on_sleep(asleep)
        return self._asleep

    async def _counters(self) -> str | None:
        liveness = self.child.profile.liveness
        if liveness.counters_path is None or liveness.counters_pattern is None:
            return None
        async with self.child.client(timeout_s=self.child.profile.timeouts.probe_s) as client:
            text = await get_text(client, self.child, liveness.counters_path)
        # ^ and $ as in `Health.ready_pattern`, which sees a line at a time.
        found = re.finditer(liveness.counters_pattern, text or "", re.MULTILINE)
        return "\n".join(match[0] for match in found) or None


async def _usage(session: usage.Session) -> usage.Usage | None:
    return await look(partial(session.usage, waits=True)) if processes.AVAILABLE else None


def _worked(before: usage.Usage | None, after: usage.Usage | None) -> bool:
    if before is None or after is None:
        return False
    took_s = after.at - before.at
    moved = after.bytes_moved - before.bytes_moved
    ran_s = after.cpu_s - before.cpu_s + after.waited_s - before.waited_s
    return ran_s >= _WORK_CPU * took_s or moved >= _WORK_BYTES_PER_S * took_s
