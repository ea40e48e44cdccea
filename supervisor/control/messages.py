"""What is said over a control socket: one JSON object in a line each way, then the server closes.

A request is `{"v": 1, "op": "state" | "seal" | "resume"}`. The answer has `"v": 1` and `"ok"`. True: the fields of a
`Status` for `state`, those of an `Outcome` for the others, which are answered when the transition has ended. False:
`error`, the name of what went wrong, `detail`, its words, and `exit_status`, the code with which a command ends for it.
Fields may be added; who does not know one leaves it alone.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal, cast, get_args

from supervisor.errors import SupervisorError

__all__ = [
    "LONGEST",
    "VERSION",
    "GpuMemoryMoved",
    "Operation",
    "Outcome",
    "Refusal",
    "Status",
    "StepTook",
    "operation_in",
    "reading",
]

VERSION: Final = 1
LONGEST: Final = 65_536  # bytes of a line; a socket's buffer holds it, so that an answer is sent without waiting

Operation = Literal["state", "seal", "resume"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What a supervisor supervises.

    Attributes:
        name: the profile's.
        supervisor_pid: of the process that answers.
        pid: of the child; None: none runs.
        state: of the lifecycle.
        since_unix_s: when it was entered, by the wall clock.
        url: where the server listens; None before the first READY.
        attempt: which run of the child it is, 1 for the first.
        under_way: the transition that is being made; None: none.
        engine: whose server it is.
    """

    name: str
    supervisor_pid: int
    pid: int | None
    state: str
    since_unix_s: float
    url: str | None
    attempt: int
    under_way: str | None
    engine: str

    def __str__(self) -> str:
        child = f"pid {self.pid}" if self.pid is not None else "no process"
        return f"{self.name} ({child}, supervisor {self.supervisor_pid}, {self.under_way or self.state})"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTook:
    """A Step that passed: the lifecycle point, its name and its seconds."""

    point: str
    step: str
    took_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMemoryMoved:
    """GPU memory that was put aside or brought back; as the events `gpu.offloaded` and `gpu.reloaded`."""

    bytes: int
    stored_bytes: int
    took_s: float
    gb_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a seal or a resume did.

    Attributes:
        operation: `seal` or `resume`.
        already: there was nothing to do.
        took_s: seconds, by the supervisor's clock.
        replaced: the child did not come back, and a cold start has taken its place.
        steps: that passed, in order.
        notices: that the supervision gave meanwhile.
        gpu_memory: what was moved at the end of it; None: nothing.
        status: afterwards.
    """

    operation: str
    already: bool
    took_s: float
    replaced: bool
    steps: tuple[StepTook, ...]
    notices: tuple[str, ...]
    gpu_memory: GpuMemoryMoved | None
    status: Status


@dataclass(eq=False, repr=False, kw_only=True)
class Refusal(SupervisorError):
    """The supervisor's answer that it did not work.

    Attributes:
        error: what went wrong, the name of a class of errors.
        detail: its words.
        exit_status: with which a command ends for it.
    """

    error: str
    detail: str
    exit_status: int = 1

    @property
    def summary(self) -> str:
        return self.detail

    @property
    def line(self) -> bytes:
        """The answer."""
        return _line({"ok": False, "error": self.error, "detail": self.detail, "exit_status": self.exit_status})


def request(operation: Operation) -> bytes:
    """The line that asks for it."""
    return _line({"op": operation})


def operation_in(line: bytes) -> Operation:
    """Return what a request asks for.

    Raises:
        Refusal: it is no request, or one of another version.
    """
    try:
        asked = json.loads(line)
    except (ValueError, RecursionError):
        asked = None
    if not isinstance(asked, dict):
        raise Refusal(error="BadRequest", detail="a request is one JSON object in a line", exit_status=2)
    if (version := asked.get("v", VERSION)) != VERSION:
        detail = f"this supervisor speaks version {VERSION} of the control socket, not {str(version)[:40]}"
        raise Refusal(error="UnknownVersion", detail=detail, exit_status=2)
    if (operation := asked.get("op")) not in get_args(Operation):
        detail = f"op is one of {', '.join(get_args(Operation))}, not {str(operation)[:40]!r}"
        raise Refusal(error="BadRequest", detail=detail, exit_status=2)
    return cast("Operation", operation)


def answer(result: Status | Outcome) -> bytes:
    """The line that says what is, or what was done."""
    return _line({"ok": True, **asdict(result)})


def reading(line: bytes) -> dict[str, Any]:
    """Return the fields of an answer.

    Raises:
        Refusal: the answer says that it did not work, or is none.
    """
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict) or not isinstance(said.get("ok"), bool):
        raise Refusal(error="BadAnswer", detail="the supervisor gave no answer: it ended, or is of another version")
    if not said["ok"]:
        status = said.get("exit_status")
        status = status if isinstance(status, int) and 1 <= status <= 5 else 1
        raise Refusal(error=str(said.get("error")), detail=str(said.get("detail")), exit_status=status)
    return said


def status_in(said: dict[str, Any]) -> Status:
    """Return the `Status` in an answer's fields; raises Refusal where one is missing."""
    return Status(**_known(Status, said))


def outcome_in(said: dict[str, Any]) -> Outcome:
    """Return the `Outcome` in an answer's fields; raises Refusal where one is missing."""
    known = _known(Outcome, said)
    known["status"] = status_in(known["status"])
    if known["gpu_memory"] is not None:
        known["gpu_memory"] = GpuMemoryMoved(**_known(GpuMemoryMoved, known["gpu_memory"]))
    known["steps"] = tuple(StepTook(**_known(StepTook, took)) for took in known["steps"])
    return Outcome(**known | {"notices": tuple(known["notices"])})


def _known(kind: type, said: dict[str, Any]) -> dict[str, Any]:
    try:
        return {field.name: said[field.name] for field in fields(kind)}
    except (KeyError, TypeError) as error:
        detail = f"the supervisor's answer lacks {error}: it is of another version"
        raise Refusal(error="BadAnswer", detail=detail) from error


def _line(said: dict[str, Any]) -> bytes:
    return json.dumps({"v": VERSION, **said}).encode() + b"\n"
