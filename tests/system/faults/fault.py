"""One row of the fault matrix: what goes wrong, when, and how supervision ends."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from supervisor import Hooks, Liveness, Profile, Stop
from support import FAKE, fake_profile
from system.faults.steps import Pulse

Moment = Literal["before spawn", "loading", "warmup", "ready", "sealed", "resumed", "stopping"]
Outcome = Literal["recovered", "refused", "failed", "stopped"]
Stage = Literal["api", "daemon", "exec", "run", "host"]

MOMENTS: tuple[Moment, ...] = ("before spawn", "loading", "warmup", "ready", "sealed", "resumed", "stopping")
TOKEN = "FAULT_ROW"  # a variable of every process of a row: who still has it at the end was left behind


def no_hooks(_: Path) -> Hooks:
    return Hooks()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One row.

    Attributes:
        name: of the row, for people who run one.
        fault: what goes wrong, for the table.
        moment: when; what is done by `act` is done then.
        outcome, error, status: how it ends: the error's class ("" for none), and the exit code that `supervise` has,
            or the host of a Daemon; 128 + n for a signal n, as a shell says it.
        says: a part of the error's text.
        stage: played through `supervise()` in this process (api), through a Daemon in this process, or as a process:
            `supervise exec`, `supervise run`, or a host of a Daemon.
        act: what is done at the moment, by name; "" when the server's own flags do it.
        flags: of the fake server; `{tmp}` is a folder of the row's.
        command: instead of the fake server.
        options: of `supervise exec`.
        under: a command that starts `supervise`; env: variables for it.
        profile: fields of the profile (not for exec).
        hooks: made for the row's folder (not for exec).
        prepare: what is done to the row's folder before.
        cripple: what `supervise run` does to itself before it begins.
        lives: children that are started in all.
        proof: a log line of the child's, an event or its detail that must be seen before it is said to have recovered.
        pulse: the watchdog's inferences must go on for a while before it is said to have recovered.
        escalated: whether KILL was needed in the end; None: either.
    """

    name: str
    fault: str
    moment: Moment
    outcome: Outcome
    error: str = ""
    status: int = 0
    says: str = ""
    stage: Stage = "api"
    act: str = ""
    flags: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    under: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    profile: Mapping[str, Any] = field(default_factory=dict)
    hooks: Callable[[Path], Hooks] = no_hooks
    prepare: Callable[[Path], None] | None = None
    cripple: Callable[[Path], None] | None = None
    lives: int = 1
    proof: str = ""
    pulse: bool = False
    escalated: bool | None = None

    def argv(self, tmp: Path) -> tuple[str, ...]:
        """The child's command line."""
        words = (*(self.command or fake_profile().command), *self.flags)
        return tuple(fill(word, tmp) for word in words)

    def build(self, tmp: Path) -> tuple[Profile, Hooks]:
        """What all stages but `supervise exec` supervise."""
        fields = {"stop": Stop(grace_s=5, drain_s=1), **self.profile}
        env = {
            name: fill(value, tmp) if isinstance(value, str) else value for name, value in fields.get("env", {}).items()
        }
        fields["env"] = {TOKEN: str(tmp), **env}
        fields["weights"] = tuple(fill(word, tmp) for word in fields.get("weights", ()))
        hooks = self.hooks(tmp)
        if self.pulse:
            fields.setdefault("liveness", Liveness(period_s=0.05, misses=3, inference_every_s=0.01))
            hooks = Hooks(**{**{n: getattr(hooks, n) for n in Hooks.__slots__}, "liveness": (Pulse(tmp / "pulse"),)})
        return fake_profile(**{**fields, "command": self.argv(tmp)}), hooks


def fill(text: str, tmp: Path) -> str:
    return text.replace("{tmp}", str(tmp)).replace("{fake}", str(FAKE)).replace("{python}", sys.executable)
