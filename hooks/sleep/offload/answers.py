"""What the library answers, as types: the fields of one JSON object, or the error that it tells of. Pure."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, get_args

from hooks.sleep.offload.errors import (
    BadRequest,
    CudaFailed,
    Damaged,
    DamagedChunk,
    GpuMemoryError,
    NothingCaught,
    NotIdle,
    OutOfGpuMemory,
    OutOfHostMemory,
    Unreadable,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Answer", "Device", "Moved", "Phase", "Status", "read_moved", "read_status", "shown"]

Phase = Literal["awake", "asleep", "damaged", "off"]
Operation = Literal["offload", "reload"]

_SHOWN: Final = 200  # characters of an answer that cannot be read


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One GPU as a process with memory on it sees it.

    Attributes:
        device: its number there.
        bytes: what the library caught and can put aside.
        used_bytes, total_bytes: of the whole GPU, by whomever.
        process_bytes: what this process holds there by NVML; None: not known.
        before_bytes: what was used of the whole GPU before the library caught something there.
    """

    device: int
    bytes: int
    used_bytes: int
    total_bytes: int
    process_bytes: int | None
    before_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What the library in one process holds.

    Attributes:
        pid: of the process.
        version: of the library's protocol.
        state: `damaged`: bytes came back wrong; `off`: nothing is caught, for the `reason`.
        allocations, bytes: caught.
        stored_bytes, zero_bytes: while asleep: kept in host memory, and left out because they are zeros.
        ipc_refused: how many times CUDA IPC of caught memory was refused.
        devices: the GPUs.
    """

    pid: int
    version: int
    state: Phase
    reason: str = ""
    allocations: int
    bytes: int
    stored_bytes: int
    zero_bytes: int
    ipc_refused: int
    devices: tuple[Device, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """What an offload or a reload did in one process.

    Attributes:
        pid: of the process.
        operation: which of the two.
        already: nothing was to do.
        allocations, bytes: of GPU memory.
        stored_bytes, zero_bytes: moved through host memory, and not moved because they are zeros.
        seconds: by phase; `total` is all of them.
        gb_per_s: how fast the stored bytes moved, in 10^9 bytes.
    """

    pid: int
    operation: Operation
    already: bool
    allocations: int
    bytes: int
    stored_bytes: int
    zero_bytes: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    gb_per_s: float = 0.0


def shown(line: bytes) -> str:
    """The beginning of an answer, for an error."""
    return line.decode(errors="replace")[:_SHOWN]


class Answer:
    """The fields of one answer; what is missing or of another kind makes it unreadable."""

    def __init__(self, pid: int, operation: str, line: bytes) -> None:
        self.pid, self.operation, self._line = pid, operation, line
        try:
            self.fields = json.loads(line)
        except (ValueError, RecursionError):
            self.unreadable()
        if not isinstance(self.fields, dict):
            self.unreadable()

    def unreadable(self) -> NoReturn:
        """Raises Unreadable, with how the answer begins."""
        raise Unreadable(pid=self.pid, operation=self.operation, seen=shown(self._line)) from None

    def of(self, fields: object) -> Answer:
        """The same answer, read from an object inside of it."""
        inner = object.__new__(Answer)
        inner.pid, inner.operation, inner._line = self.pid, self.operation, self._line
        if not isinstance(fields, dict):
            self.unreadable()
        inner.fields = fields
        return inner

    def flag(self, name: str) -> bool:
        """A field that is true or false."""
        value = self.fields.get(name)
        return value if isinstance(value, bool) else self.unreadable()

    def count(self, name: str) -> int:
        """A whole number, 0 or more."""
        value = self.fields.get(name)
        return value if type(value) is int and value >= 0 else self.unreadable()

    def number(self, name: str) -> float:
        """A finite number."""
        value = self.fields.get(name)
        right = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return float(value) if right else self.unreadable()

    def text(self, name: str) -> str:
        """A text; empty when there is none."""
        value = self.fields.get(name, "")
        return value if isinstance(value, str) else self.unreadable()

    def items(self, name: str) -> list[Answer]:
        """A list of objects."""
        value = self.fields.get(name)
        return [self.of(item) for item in value] if isinstance(value, list) else self.unreadable()

    def fail(self) -> NoReturn:
        """Raises the error that the answer tells of."""
        whose: Any = {"pid": self.pid, "operation": self.operation}
        detail = self.text("detail")
        error: GpuMemoryError
        match self.fields.get("error"):
            case "bad_request":
                error = BadRequest(**whose, detail=detail)
            case "not_idle":
                error = NotIdle(**whose, detail=detail)
            case "out_of_gpu_memory":
                wanted, free = self.count("wanted_bytes"), self.count("free_bytes")
                error = OutOfGpuMemory(**whose, device=self.count("device"), wanted_bytes=wanted, free_bytes=free)
            case "out_of_host_memory":
                error = OutOfHostMemory(**whose, wanted_bytes=self.count("wanted_bytes"))
            case "checksum":
                chunks = tuple(
                    DamagedChunk(device=it.count("device"), address=it.text("address"), bytes=it.count("bytes"))
                    for it in self.items("damaged")
                )
                error = Damaged(**whose, chunks=self.count("damaged_chunks"), damaged=chunks, detail=detail)
            case "damaged":
                error = Damaged(**whose, chunks=0, damaged=(), detail=detail)
            case "cuda":
                code = self.fields.get("code")
                known = code if type(code) is int else self.unreadable()
                error = CudaFailed(**whose, call=self.text("call"), code=known, name=self.text("name"), detail=detail)
            case "off":
                error = NothingCaught(**whose, detail=detail)
            case _:
                self.unreadable()
        raise error


def read_status(answer: Answer) -> Status:
    """Read what a process says of itself; raises Unreadable, or CudaFailed where CUDA does not tell."""
    state = answer.text("state")
    if state not in get_args(Phase):
        answer.unreadable()
    return Status(
        pid=answer.pid,
        version=answer.count("version"),
        state=state,  # type: ignore[arg-type]  # one of them, as seen above
        reason=answer.text("reason"),
        allocations=answer.count("allocations"),
        bytes=answer.count("bytes"),
        stored_bytes=answer.count("stored_bytes"),
        zero_bytes=answer.count("zero_bytes"),
        ipc_refused=answer.count("ipc_refused"),
        devices=tuple(_device(device) for device in answer.items("devices")),
    )


def _device(answer: Answer) -> Device:
    if answer.fields.get("used_bytes", 0) is None:  # the process's context is ruined
        call, name = "cuMemGetInfo", answer.text("name")
        raise CudaFailed(pid=answer.pid, operation=answer.operation, call=call, code=answer.count("code"), name=name)
    unknown = answer.fields.get("process_bytes") is None
    return Device(
        device=answer.count("device"),
        bytes=answer.count("bytes"),
        used_bytes=answer.count("used_bytes"),
        total_bytes=answer.count("total_bytes"),
        process_bytes=None if unknown else answer.count("process_bytes"),
        before_bytes=answer.count("before_bytes"),
    )


def read_moved(answer: Answer) -> Moved:
    """Read what an offload or a reload did; raises Unreadable."""
    seconds = answer.of(answer.fields.get("seconds", {}))
    return Moved(
        pid=answer.pid,
        operation="offload" if answer.operation == "offload" else "reload",
        already=answer.flag("already"),
        allocations=answer.count("allocations"),
        bytes=answer.count("bytes"),
        stored_bytes=answer.count("stored_bytes"),
        zero_bytes=answer.count("zero_bytes"),
        seconds={phase: seconds.number(phase) for phase in seconds.fields},
        gb_per_s=answer.number("gb_per_s") if "gb_per_s" in answer.fields else 0.0,
    )
