"""Asking the library in one process: a JSON line over its Unix socket, a JSON line back, as types."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["Device", "Moved", "Phase", "Status", "offload", "reload", "status"]

Phase = Literal["awake", "asleep", "damaged", "off"]


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
    operation: Literal["offload", "reload"]
    already: bool
    allocations: int
    bytes: int
    stored_bytes: int
    zero_bytes: int
    seconds: Mapping[str, float] = field(default_factory=dict)
    gb_per_s: float = 0.0


async def status(socket: Path) -> Status:
    """Ask what the library in the process `<pid>.sock` holds; raises GpuMemoryError."""
    raise NotImplementedError(socket)


async def offload(
    socket: Path,
    *,
    threads: int = 8,
    verify: bool = True,
    idle_s: float = 30.0,
    chunk_bytes: int | None = None,
    zeros: Literal["gpu", "host", "none"] | None = None,
) -> Moved:
    """Put the GPU memory of a process aside; raises GpuMemoryError, and then it is awake and whole."""
    raise NotImplementedError(socket, threads, verify, idle_s, chunk_bytes, zeros)


async def reload(socket: Path, *, threads: int = 8) -> Moved:
    """Bring the GPU memory of a process back; raises GpuMemoryError."""
    raise NotImplementedError(socket, threads)
