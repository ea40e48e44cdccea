"""How a process ended, and a descriptor (a pidfd, else a pipe) that becomes readable when it does."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitReport:
    """How a process ended: one of `exit_code` and `signal` is set. `uptime_s` counts from the spawn.

    Neither is set when somebody else in this process reaped the child, or SIGCHLD is ignored: then nobody knows.
    """

    pid: int
    exit_code: int | None
    signal: str | None
    uptime_s: float


def exit_fd(pid: int) -> int:
    """A descriptor that becomes readable when the process ends: a pidfd, or a pipe from a thread that waits."""
    if hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):  # kernels before 5.3 and gVisor have none
            return os.pidfd_open(pid)
    read_end, write_end = os.pipe()

    def wait() -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        os.close(write_end)

    try:
        threading.Thread(target=wait, name=f"wait-{pid}", daemon=True).start()
    except RuntimeError:
        os.close(read_end)
        os.close(write_end)
        raise
    return read_end


def signal_name(number: int) -> str:
    """`SIGTERM` for 15; real-time signals have no names."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
