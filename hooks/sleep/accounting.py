"""Whether the library caught all GPU memory that a server uses: pure functions of what its processes say.

Memory escapes the library when an engine does not ask `cudaMalloc` or `cuMemAlloc` for it: with an allocator that calls
`cuMemCreate` itself (torch's expandable segments), with managed memory, or through a runtime that is linked statically.
What escaped stays on the GPU while the rest is put aside.

How it is judged. Where NVML tells what a process holds, that is compared with what the library caught there. Elsewhere
(a container without NVML, or one that hides the processes) the use of the whole GPU is: what came since the library's
first catch, minus all that was caught. Another server that takes memory meanwhile then looks like an escape, and one
that gives some back hides one. Both readings hold what is never caught, and `TOLERANCE_BYTES` allows it to each process
on each GPU: the CUDA context (by NVML only), kernels, CUDA graphs, and allocations below the library's threshold.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hooks.sleep.offload.errors import gb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hooks.sleep.offload.client import Device, Status

__all__ = ["REMEDY", "TOLERANCE_BYTES", "Escaped", "escaped", "spread"]

TOLERANCE_BYTES: Final = 2 << 30
"""What a process may hold on a GPU beside what was caught. vLLM 0.26.0 with tensor parallelism 2 and CUDA graphs left
1.1 to 1.7 GB on each of two H200s (seen, driver 580.159.04, CUDA 13.0)."""

REMEDY: Final = (
    "With PyTorch, take expandable_segments:True out of PYTORCH_CUDA_ALLOC_CONF; an engine's own allocator (its sleep "
    "mode, managed memory) must be off"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Escaped:
    """GPU memory in use that was not caught.

    Attributes:
        device: the number of the GPU.
        pid: of the process that holds it; None: known of the whole GPU only.
        bytes: not caught, what is always there included.
        caught_bytes: caught there.
    """

    device: int
    pid: int | None
    bytes: int
    caught_bytes: int

    def __str__(self) -> str:
        who = f"process {self.pid} holds" if self.pid else "there are"
        missed = f"{gb(self.bytes)} on GPU {self.device} that the library did not catch"
        return f"{who} {missed}, beside {gb(self.caught_bytes)} that it caught"


def escaped(found: Sequence[Status], tolerance_bytes: int = TOLERANCE_BYTES) -> tuple[Escaped, ...]:
    """Return where more than the tolerance was not caught, by GPU."""
    by_device: dict[int, list[tuple[int, Device]]] = defaultdict(list)
    for status in found:
        for device in status.devices:
            by_device[device.device].append((status.pid, device))
    losses: list[Escaped] = []
    for number, holders in sorted(by_device.items()):
        known = [(pid, held, held.process_bytes) for pid, held in holders if held.process_bytes is not None]
        caught = sum(held.bytes for _, held in holders)
        if len(known) == len(holders):
            losses += [
                Escaped(device=number, pid=pid, bytes=holds - held.bytes, caught_bytes=held.bytes)
                for pid, held, holds in known
                if holds - held.bytes > tolerance_bytes
            ]
            continue
        before = min(held.before_bytes for _, held in holders)
        rest = max(held.used_bytes for _, held in holders) - before - caught
        if rest > tolerance_bytes * len(holders):
            losses.append(Escaped(device=number, pid=None, bytes=rest, caught_bytes=caught))
    return tuple(losses)


def spread(found: Sequence[Status]) -> tuple[int, ...]:
    """Return the processes that hold memory, when there are several and not all on one and the same GPUs.

    By their own numbers of the GPUs: ranks that each see one GPU alone, as number 0, are not told apart.
    """
    holders = {status.pid: frozenset(it.device for it in status.devices if it.bytes) for status in found}
    holders = {pid: devices for pid, devices in holders.items() if devices}
    return tuple(sorted(holders)) if len(set(holders.values())) > 1 else ()
