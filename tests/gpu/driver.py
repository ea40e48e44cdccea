"""What the CUDA driver does to another process: checkpoint its GPU memory into host memory, and bring it back.

https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__CHECKPOINT.html, driver 570 or later.
"""

from __future__ import annotations

import ctypes
import subprocess
from typing import Final

LOCK_S: Final = 30
STATES: Final = ("running", "locked", "checkpointed", "failed")


class DriverError(Exception):
    """A call of the driver failed."""


class Checkpoint:
    """The driver's checkpoint of one process and its CUDA contexts. Calls block, and are made from another process."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._cuda = ctypes.CDLL("libcuda.so.1")
        self._check("cuInit", self._cuda.cuInit(0))

    def lock(self) -> None:
        """Waits for the work under way, then holds every CUDA call that the process makes."""
        arguments = (ctypes.c_uint64 * 16)(LOCK_S * 1000)  # a struct that begins with `unsigned timeoutMs`
        self._call("Lock", arguments)

    def checkpoint(self) -> None:
        """Copies GPU memory to host memory, which belongs to the process, and lets the GPU go."""
        self._call("Checkpoint")

    def restore(self) -> None:
        """Takes the GPU again and copies back; the process is still locked."""
        self._call("Restore")

    def unlock(self) -> None:
        """Lets CUDA calls go on."""
        self._call("Unlock")

    @property
    def state(self) -> str:
        """One of STATES."""
        value = ctypes.c_int()
        self._check("GetState", self._cuda.cuCheckpointProcessGetState(self._pid, ctypes.byref(value)))
        return STATES[value.value]

    def _call(self, name: str, arguments: ctypes.Array[ctypes.c_uint64] | None = None) -> None:
        self._check(name, getattr(self._cuda, f"cuCheckpointProcess{name}")(self._pid, arguments))

    def _check(self, name: str, code: int) -> None:
        if code:
            text = ctypes.c_char_p()
            self._cuda.cuGetErrorString(code, ctypes.byref(text))
            raise DriverError(f"{name} of pid {self._pid}: {code}, {(text.value or b'').decode()}")


def used_mib() -> int:
    """GPU memory in use, by whomever, on all GPUs."""
    return sum(map(int, _query("memory.used")))


def describe() -> str:
    """The first GPU and its driver."""
    return _query("name,driver_version,memory.total")[0]


def _query(what: str) -> list[str]:
    argv = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    out = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return [line.strip() for line in out.splitlines()]
