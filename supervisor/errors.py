"""Every way in which supervision can end, one class a cause.

SupervisorError                  base; `cli_status` is the exit code of `supervise`
├── ProfileError             2   a setting is wrong: field, value, allowed
│   └── UnsupportedFlag      2   the engine's binary lacks a flag that a setting needs
├── SpawnError               3   the command could not be started at all
├── OutOfResources           3   this process could not get a thread, a descriptor or memory
├── NotReady                 3   base: the child never became ready
│   ├── DiedBeforeReady          it exited (any code) or was killed while loading or in warmup
│   │   └── WorkerDiedBeforeReady    the same of a process that `Profile.vital` names
│   ├── ReadinessTimeout         `start_s` passed
│   ├── LoadStalled              nothing read, no CPU used, nothing logged for `stall_s`
│   ├── PortTaken                somebody else listens on the port
│   └── WrongModel               our child answers, but not for the model that was asked for
├── StepFailed               4   a hook refused: lifecycle point, step, reason
├── ChildCrashed             1   the child ended after READY, unasked
│   └── WorkerDied               the same of a process that `Profile.vital` names
├── ChildUnresponsive        1   the child lives but does not answer
├── IllegalState             1   an operation that the present state forbids
└── StillAsleep              1   a `wake` Step could not wake the server now, and has changed nothing

Errors carry fields; the message is built from them, in the order what happened, what was seen, what to try. A `tail`
holds the child's last log lines, already redacted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

__all__ = [
    "ChildCrashed",
    "ChildUnresponsive",
    "DiedBeforeReady",
    "IllegalState",
    "LoadStalled",
    "NotReady",
    "OutOfResources",
    "PortTaken",
    "ProfileError",
    "ReadinessTimeout",
    "SpawnError",
    "StepFailed",
    "StillAsleep",
    "SupervisorError",
    "UnsupportedFlag",
    "WorkerDied",
    "WorkerDiedBeforeReady",
    "WrongModel",
]


def _rebuild(cls: type[SupervisorError], fields: dict[str, Any]) -> SupervisorError:
    error = cls.__new__(cls)
    error.__dict__.update(fields)
    return error


class SupervisorError(Exception):
    """Base of all errors that cross the public edge."""

    cli_status: ClassVar[int] = 1

    @property
    def summary(self) -> str:
        """What happened and what to try, without the log lines."""
        return type(self).__name__

    def __str__(self) -> str:
        tail = getattr(self, "tail", ())
        return "\n".join([self.summary, "Its last lines:", *(f"    {line}" for line in tail)]) if tail else self.summary

    def __repr__(self) -> str:
        # Some hosts show nothing but this.
        return f"{type(self).__name__}({self.summary!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        # Hosts pickle what a lifecycle hook raises (Modal does); keyword-only fields need this.
        return _rebuild, (type(self), dict(self.__dict__))


def _how(exit_code: int | None, signal: str | None) -> str:
    if signal is None and exit_code is None:
        return "ended (how is unknown: SIGCHLD is ignored here, or somebody else reaped it)"
    return f"was killed by {signal}" if signal else f"exited with code {exit_code}"


def _worker(pid: int, command: str, exit_code: int | None, signal: str | None) -> str:
    how = "ended" if exit_code is None and signal is None else _how(exit_code, signal)
    return f"the child's process {pid} ({command}) {how}"


@dataclass(eq=False, repr=False, kw_only=True)
class ProfileError(SupervisorError, ValueError):
    """A setting is wrong; nothing was started."""

    cli_status: ClassVar[int] = 2
    field: str
    value: object
    allowed: str

    @property
    def summary(self) -> str:
        return f"{self.field}={self.value!r} is not valid: it must be {self.allowed}."


def require(ok: bool, field: str, value: object, allowed: str) -> None:
    """Raises ProfileError unless it is ok."""
    if not ok:
        raise ProfileError(field=field, value=value, allowed=allowed)


@dataclass(eq=False, repr=False, kw_only=True)
class UnsupportedFlag(ProfileError):
    """The engine's binary does not know a flag that a setting needs; found in its `--help`, before any spawn."""

    binary: str

    @property
    def summary(self) -> str:
        return (
            f"{self.field}={self.value!r} needs {self.allowed}, which {self.binary} does not list in its --help. "
            "Use a build that has the flag, or drop the setting."
        )


@dataclass(eq=False, repr=False, kw_only=True)
class SpawnError(SupervisorError):
    """The operating system refused to start the command."""

    cli_status: ClassVar[int] = 3
    argv: tuple[str, ...]
    reason: str

    @property
    def summary(self) -> str:
        return f"could not start {self.argv[0]!r}: {self.reason}."


@dataclass(eq=False, repr=False, kw_only=True)
class OutOfResources(SupervisorError):
    """This process, not the child, could not get a thread, a descriptor or memory; the cause is `__cause__`."""

    cli_status: ClassVar[int] = 3
    reason: str
    look_at: str

    @property
    def summary(self) -> str:
        return f"the supervisor is out of resources: {self.reason}. Look at {self.look_at}."


@dataclass(eq=False, repr=False, kw_only=True)
class NotReady(SupervisorError):
    """Base: the child was started and never became ready. `waited_s` counts from the spawn."""

    cli_status: ClassVar[int] = 3
    waited_s: float
    tail: tuple[str, ...] = ()


@dataclass(eq=False, repr=False, kw_only=True)
class DiedBeforeReady(NotReady):
    """The child ended while loading or during warmup; also with exit code 0.

    Attributes:
        exit_code, signal: how it ended; one of them is None.
        during: `loading` or `warmup`.
        out_of_memory: the log line in which the engine says that it could not allocate memory; None: it said no such
            thing.
    """

    exit_code: int | None
    signal: str | None
    during: str
    out_of_memory: str | None = None

    @property
    def summary(self) -> str:
        what = f"the child {_how(self.exit_code, self.signal)} during {self.during}, after {self.waited_s:.2f} s."
        if self.exit_code == 0 and not self.out_of_memory:
            what += " A server that exits cleanly while loading usually printed help, or detached into the background."
        return what + self._hint

    @property
    def _hint(self) -> str:
        if self.out_of_memory:
            return (
                f" It could not allocate memory ({self.out_of_memory[:200].strip()}): choose a smaller context or "
                "model, fewer layers in GPU memory, or a larger machine."
            )
        if self.signal == "SIGILL":
            return " The binary uses instructions that this CPU lacks: take a build for this machine."
        if self.signal == "SIGKILL":
            return " Nobody here sent that: look for the out-of-memory killer or the container's memory limit."
        return ""


@dataclass(eq=False, repr=False, kw_only=True)
class WorkerDiedBeforeReady(DiedBeforeReady):
    """A process that `Profile.vital` names ended during the load or the warmup; `exit_code` and `signal` are its own.

    Attributes:
        worker_pid, worker: its number, and its command line, masked.
    """

    worker_pid: int
    worker: str

    @property
    def summary(self) -> str:
        what = _worker(self.worker_pid, self.worker, self.exit_code, self.signal)
        return f"{what} during {self.during}, after {self.waited_s:.2f} s.{self._hint}"


@dataclass(eq=False, repr=False, kw_only=True)
class ReadinessTimeout(NotReady):
    """`start_s` passed before the child was ready. `may_still_load`: more time could help, by the last probe."""

    probes: int
    detail: str
    may_still_load: bool = True

    @property
    def summary(self) -> str:
        hint = " Raise the start timeout if the load was still moving." if self.may_still_load else ""
        return (
            f"not ready after {self.waited_s:.1f} s and {self.probes} probes; the last probe said: {self.detail}.{hint}"
        )


@dataclass(eq=False, repr=False, kw_only=True)
class LoadStalled(NotReady):
    """No byte read, no CPU used and no line logged for `stall_s`."""

    stall_s: float
    bytes_read: int
    total_bytes: int | None
    detail: str

    @property
    def summary(self) -> str:
        of = f" of {self.total_bytes}" if self.total_bytes else ""
        return (
            f"the load stalled: for {self.stall_s:g} s the child read nothing, used no CPU and logged nothing "
            f"({self.bytes_read}{of} bytes read; the last probe said: {self.detail}). "
            "Look at the disk or network file system that holds the weights."
        )


@dataclass(eq=False, repr=False, kw_only=True)
class PortTaken(NotReady):
    """Somebody else's server listens on the address that the child was given.

    Attributes:
        host, port: the address.
        pid, command: of the one who listens; None when this user cannot see it.
        may_forward: it began to listen after the child, so that it may be the child's proxy.
    """

    host: str
    port: int
    pid: int | None
    command: str | None
    may_forward: bool = False

    @property
    def summary(self) -> str:
        who = f"pid {self.pid} ({self.command})" if self.pid else "a process that this user cannot see"
        hint = ""
        if self.may_forward:
            hint = (
                " If it forwards to the server, as docker-proxy does, allow it: --allow-foreign-listener, "
                "in a profile Health(allow_foreign_listener=True)."
            )
        return (
            f"{self.host}:{self.port} is taken by {who}; its answers would have been mistaken for the child's. "
            f"Stop that process, or use port 0 to have a free one chosen.{hint}"
        )


@dataclass(eq=False, repr=False, kw_only=True)
class WrongModel(NotReady):
    """The child is up, but does not serve the model that the profile names."""

    wanted: str
    seen: str

    @property
    def summary(self) -> str:
        return (
            f"the server is up but does not serve {self.wanted!r}: {self.seen}. "
            "Check the model path and the alias; a server that was given no model may be healthy and serve none."
        )


@dataclass(eq=False, repr=False, kw_only=True)
class StepFailed(SupervisorError):
    """A Step raised or overran its deadline. The Step's own exception is `__cause__`."""

    cli_status: ClassVar[int] = 4
    point: str
    step: str
    took_s: float
    reason: str
    tail: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        return f"{self.point} step {self.step!r} failed after {self.took_s:.2f} s: {self.reason}"


@dataclass(eq=False, repr=False, kw_only=True)
class ChildCrashed(SupervisorError):
    """The child ended after READY though nobody asked it to. `uptime_s` counts from the spawn."""

    exit_code: int | None
    signal: str | None
    uptime_s: float
    tail: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        return f"the child {_how(self.exit_code, self.signal)} unasked, {self.uptime_s:.1f} s after its start."


@dataclass(eq=False, repr=False, kw_only=True)
class WorkerDied(ChildCrashed):
    """A process that `Profile.vital` names ended after READY; `exit_code` and `signal` are its own.

    Attributes:
        worker_pid, worker: its number, and its command line, masked.
    """

    worker_pid: int
    worker: str

    @property
    def summary(self) -> str:
        what = _worker(self.worker_pid, self.worker, self.exit_code, self.signal)
        return f"{what} unasked, {self.uptime_s:.1f} s after the child's start. The child cannot serve without it."


@dataclass(eq=False, repr=False, kw_only=True)
class ChildUnresponsive(SupervisorError):
    """The child's process lives, but liveness checks failed `misses` times in a row."""

    misses: int
    detail: str
    tail: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        return f"the child runs but does not answer: {self.misses} checks failed in a row, the last: {self.detail}."


@dataclass(eq=False, repr=False, kw_only=True)
class IllegalState(SupervisorError):
    """The operation is not allowed in the present state; nothing was changed."""

    operation: str
    state: str
    allowed: str

    @property
    def summary(self) -> str:
        return f"cannot {self.operation} while {self.state}: it needs {self.allowed}."


@dataclass(eq=False, repr=False, kw_only=True)
class StillAsleep(SupervisorError):
    """A `wake` Step raises it: the server cannot be woken now, and sleeps on unharmed. It stays SEALED."""

    reason: str

    @property
    def summary(self) -> str:
        return f"it sleeps on, unharmed: {self.reason}"
