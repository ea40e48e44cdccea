"""States, events, and the table of legal transitions. Pure: no I/O, no clock.

An event that enters a state says so in `enters`; the emitter refuses a transition that `TRANSITIONS` does not list.
Every event carries `elapsed_s` (seconds since `supervise` began, from the monotonic clock, so a snapshot's suspension
counts) and `unix_s` (wall clock); whoever emits one leaves them out.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import ClassVar, Literal

Level = Literal["debug", "info", "warning", "error"]


class State(enum.StrEnum):
    """Where the lifecycle is; the comments are contracts."""

    STARTING = "starting"  # before_start Steps run; there is no child
    LOADING = "loading"  # the child runs; health is polled
    UP = "up"  # the server says that it can serve; warmup Steps run
    READY = "ready"  # warm and verified; the host has its handle
    SEALED = "sealed"  # quiesced, asleep if the hooks say so: no request, no client socket, no timer of ours
    STOPPING = "stopping"  # TERM was sent, or the child died: teardown runs
    STOPPED = "stopped"  # reaped, drained, asked for
    FAILED = "failed"  # reaped, drained, not asked for


TRANSITIONS: dict[State | None, frozenset[State]] = {
    None: frozenset({State.STARTING}),
    State.STARTING: frozenset({State.LOADING, State.STOPPED, State.FAILED}),
    State.LOADING: frozenset({State.UP, State.STOPPING}),
    State.UP: frozenset({State.READY, State.STOPPING}),
    State.READY: frozenset({State.SEALED, State.STOPPING}),
    State.SEALED: frozenset({State.READY, State.STOPPING}),
    State.STOPPING: frozenset({State.STOPPED, State.FAILED}),
    State.STOPPED: frozenset(),
    State.FAILED: frozenset({State.STARTING, State.STOPPED}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Base of all events.

    Attributes:
        name: what a log shows, and what stays: `noun.verb`.
        level: how much it matters.
        enters: the state that the lifecycle is in from this event on; None: it stays where it is.
        elapsed_s: seconds since `supervise` began; the emitter stamps it.
        unix_s: wall clock; the emitter stamps it.
    """

    name: ClassVar[str]
    level: ClassVar[Level] = "info"
    enters: ClassVar[State | None] = None
    elapsed_s: float = 0.0
    unix_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Starting(Event):
    """A run of the server begins; `attempt` is 1 for the first, one more after each restart."""

    name = "child.starting"
    enters = State.STARTING
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpawned(Event):
    """The command runs. `argv` is redacted."""

    name = "child.spawned"
    enters = State.LOADING
    pid: int
    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadProgress(Event):
    """Bytes read of the weights; `eta_s` when the total is known and the rate is not zero."""

    name = "load.progress"
    bytes: int
    total_bytes: int | None
    bytes_per_s: float
    eta_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthWaiting(Event):
    """Not ready yet: sent every `Health.log_every` failed probes, with what the last one said."""

    name = "health.waiting"
    failures: int
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildUp(Event):
    """The server says that it can serve."""

    name = "child.up"
    enters = State.UP
    waited_s: float
    probes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPassed(Event):
    """A Step at the lifecycle point `point` passed; those of `warmup` are `WarmupPassed`."""

    name = "step.passed"
    point: str
    step: str
    took_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmupPassed(StepPassed):
    """A warmup Step passed."""

    name = "warmup.passed"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFailed(Event):
    """A Step at the lifecycle point `point` failed; the error that follows holds the same reason."""

    name = "step.failed"
    level = "error"
    point: str
    step: str
    took_s: float
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildReady(Event):
    """Warm and verified. `waited_s` counts from the spawn."""

    name = "child.ready"
    enters = State.READY
    waited_s: float
    url: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSealed(Event):
    """Quiesced for a snapshot, and asleep where there are `sleep` Steps."""

    name = "child.sealed"
    enters = State.SEALED
    took_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildResumed(Event):
    """Awake, verified after a snapshot, and serving again."""

    name = "child.resumed"
    enters = State.READY
    took_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildLog(Event):
    """One line of the child, decoded, without ANSI codes, redacted; `line_level` is the engine's own."""

    name = "child.log"
    stream: Literal["stdout", "stderr"]
    line: str
    line_level: Level


@dataclass(frozen=True, slots=True, kw_only=True)
class LogDropped(Event):
    """Output that was read and not kept: `lines` whole ones, `bytes` in all (a cut line's rest counts too)."""

    name = "log.dropped"
    level = "warning"
    lines: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineAsleep(Event):
    """The engine has put its model to sleep by itself; the watchdog asks no inference of it until it is awake."""

    name = "engine.asleep"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineAwake(Event):
    """The engine that had put itself to sleep has its model again."""

    name = "engine.awake"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMemoryOffloaded(Event):
    """The GPU memory of the child's processes was put aside: nothing may reach their GPUs until it is back.

    Attributes:
        pids: of the processes that hold it.
        bytes: of GPU memory.
        stored_bytes: of these, what went to host memory; the rest is zeros.
        took_s: from the request until the last process had answered.
        gb_per_s: how fast the stored bytes were copied, over all processes, in 10^9 bytes.
    """

    name = "gpu.offloaded"
    pids: tuple[int, ...]
    bytes: int
    stored_bytes: int
    took_s: float
    gb_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMemoryReloaded(Event):
    """The GPU memory of the child's processes is back at its addresses; the fields are those of the offload."""

    name = "gpu.reloaded"
    pids: tuple[int, ...]
    bytes: int
    stored_bytes: int
    took_s: float
    gb_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildUnresponsive(Event):
    """The watchdog gave up on the child."""

    name = "child.unresponsive"
    level = "error"
    misses: int
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopping(Event):
    """Teardown begins, because it was asked for or because of an error of the class `reason`."""

    name = "child.stopping"
    enters = State.STOPPING
    asked: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildExited(Event):
    """The child's process has ended; code and signal apart, exactly one of them set."""

    name = "child.exited"
    pid: int
    exit_code: int | None
    signal: str | None
    uptime_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TeardownFinished(Event):
    """The child and its descendants are gone. `escalated`: KILL was needed; `drained`: every pipe reached its end.

    `survivors`: processes that could not be ended, as `pid N (command)`; nothing is left when there are none.
    """

    name = "teardown.finished"
    took_s: float
    escalated: bool
    drained: bool
    survivors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped(Event):
    """The end, as asked for."""

    name = "supervision.stopped"
    enters = State.STOPPED


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Event):
    """A run ended without a request to stop; a restart may follow."""

    name = "supervision.failed"
    level = "error"
    enters = State.FAILED
    error: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildRestarting(Event):
    """A fresh child follows after `delay_s`; `attempt` counts restarts from 1."""

    name = "child.restarting"
    level = "warning"
    attempt: int
    delay_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChosen(Event):
    """Whose server a bare command starts, for `supervise exec`; `why`: who says so, and how to say otherwise."""

    name = "engine.chosen"
    engine: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice(Event):
    """Something worth knowing once: a check that steps aside on this platform, a port chosen anew."""

    name = "supervision.notice"
    level = "warning"
    detail: str
