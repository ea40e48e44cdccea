"""An episode of a soak: drawn by dice, built for a folder."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from supervisor import Hooks, Liveness, Profile, Timeouts
from system.faults import MATRIX, Fault, gpu_memory
from system.faults.settings import QUICK, SHORT, WATCH

ACTS = ("kill", "term", "freeze", "blink", "seal", "seal", "seal and kill", "ask", "ask", "ask")
# Rows that this process can play many at once: no settings of the host's, no other server.
ROWS = tuple(
    fault
    for fault in MATRIX
    if fault.stage in ("api", "daemon")
    and fault.moment != "before spawn"
    and (fault.prepare is not gpu_memory.cuda or shutil.which("cc"))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """An episode: a row, acts with the pauses before each, and when it is stopped."""

    fault: Fault
    restarts: bool
    acts: tuple[tuple[float, str], ...]
    stop_after_s: float

    @classmethod
    def draw(cls, dice: random.Random) -> Plan:
        """The next one."""
        acts = tuple((dice.uniform(0, 0.4), dice.choice(ACTS)) for _ in range(dice.randrange(5)))
        return cls(fault=dice.choice(ROWS), restarts=dice.random() < 0.7, acts=acts, stop_after_s=dice.uniform(0, 0.8))

    def build(self, tmp: Path, observer: Any) -> tuple[Profile, Hooks]:
        """With limits that suit many short lives."""
        profile, hooks = self.fault.build(tmp)
        own = self.fault.profile
        return replace(
            profile,
            stop=own.get("stop", SHORT),
            timeouts=own.get("timeouts", Timeouts(start_s=10, probe_s=0.3, step_s=5, resume_s=2)),
            liveness=profile.liveness if profile.liveness != Liveness() else WATCH,
            restart=replace(QUICK, max_restarts=1000) if self.restarts else profile.restart,
        ), replace(hooks, observers=(*hooks.observers, observer))  # an engine's own stay: one takes its key file away
