"""What a process tree holds that could stay behind after its end: processes, ports, shared memory."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

from supervisor.linux import files, processes
from supervisor.linux.listeners import listening_ports
from supervisor.linux.sockets import listeners

__all__ = ["Trace", "trace_of"]

_GONE_S = 5.0  # a socket, or a process that was reaped by somebody else, may need a moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What a tree held.

    Attributes:
        began: pid -> when it started.
        listening: inode -> port of each socket on which a member listened. By inode, because the next life, or an
            engine beside it, may be given the same number.
        shared: files below /dev/shm that a member had mapped or open.
    """

    began: dict[int, int]
    listening: dict[str, int]
    shared: tuple[str, ...]

    def left(self) -> list[str]:
        """Return the processes and ports that are still there after a moment."""
        ends = time.monotonic() + _GONE_S
        while (left := self._left()) and time.monotonic() < ends:
            time.sleep(0.02)
        return left

    def files_left(self) -> list[str]:
        """Return the shared memory that still has a name."""
        return [path for path in self.shared if Path(path).exists()]

    def _left(self) -> list[str]:
        now = {pid: processes.stat(pid) for pid in self.began}
        alive = [pid for pid, stat in now.items() if stat and not stat.zombie and stat.began == self.began[pid]]
        open_now = {listener.inode for listener in listeners()}
        return [
            *(f"process {pid}" for pid in alive),
            *(f"port {port}" for inode, port in self.listening.items() if inode in open_now),
        ]


def trace_of(leader: int, cookie: str | None) -> Trace:
    """Read what a tree holds now."""
    members, ports = processes.living(leader, cookie), listening_ports(leader, cookie)
    return Trace(
        began={member.pid: member.began for member in members},
        listening={listener.inode: listener.port for listener in listeners() if listener.port in ports},
        shared=tuple(sorted({path for member in members for path in _shared(member.pid)})),
    )


def _shared(pid: int) -> set[str]:
    found = {line.path for line in files.maps(pid) or () if line.path.startswith("/dev/shm/")}  # noqa: S108
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                target = os.readlink(f"/proc/{pid}/fd/{fd}")
                if target.startswith("/dev/shm/"):  # noqa: S108
                    found.add(target)
    return {path for path in found if not path.endswith(" (deleted)")}
