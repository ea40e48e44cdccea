"""The fault matrix as data, a file a moment: what goes wrong, when, and how it ends. `test_faults` plays every row.

Outcomes: `recovered` (it served all along, or serves again, and stopped when asked), `refused` (nothing wrong was ever
served: it never became READY, or the seal was refused and it served on), `failed` (it ended unasked after READY),
`stopped` (it ended as asked, whatever stood in the way).
"""

from __future__ import annotations

from system.faults.before_spawn import BEFORE_SPAWN
from system.faults.fault import MOMENTS, TOKEN, Fault
from system.faults.gpu_memory import GPU_MEMORY
from system.faults.images import IMAGES
from system.faults.loading import LOADING
from system.faults.ready import READY
from system.faults.resumed import RESUMED
from system.faults.router import ROUTER
from system.faults.sealed import SEALED
from system.faults.sglang import SGLANG
from system.faults.stopping import STOPPING
from system.faults.vllm import VLLM
from system.faults.warmup import WARMUP

__all__ = ["MATRIX", "MOMENTS", "TOKEN", "Fault", "row"]

MATRIX: tuple[Fault, ...] = (
    *BEFORE_SPAWN,
    *LOADING,
    *WARMUP,
    *READY,
    *SEALED,
    *RESUMED,
    *STOPPING,
    *SGLANG,
    *VLLM,
    *ROUTER,
    *IMAGES,
    *GPU_MEMORY,
)


def row(name: str) -> Fault:
    """The row of a name."""
    return next(fault for fault in MATRIX if fault.name == name)
