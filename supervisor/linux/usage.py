"""What the processes of a child use: bytes read and written, CPU time. None where there is no /proc."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from supervisor.linux import files
from supervisor.linux.processes import living, stat

_RESCAN_S: Final = 2.0  # a look at all of /proc takes 70 ms among 1600 processes


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What living members and children that they reaped have used; of sockets only what read(2) and write(2) moved.

    Attributes:
        bytes_read: by all of them together, what read(2) returned or what came from the disk, whichever is more.
        bytes_moved: all that they read and wrote, to see whether they move: what read(2) had to fetch from the disk
            counts twice. Not `bytes_read`, which stands still while reads catch up with what page faults fetched.
        cpu_s: used by them.
        waited_s: for how long their present threads were ready to run while others had the cores; 0.0 unless asked for.
        at: `time.monotonic()` of the look.
    """

    bytes_read: int
    bytes_moved: int
    cpu_s: float
    waited_s: float
    at: float


class Session:
    """A session whose members are remembered: all of /proc is read at most every 2 s, or when a member is gone."""

    def __init__(self, session: int, cookie: str | None = None) -> None:
        self._session = session
        self._cookie = cookie
        self._began: dict[int, int] = {}  # when each member began: its number may be another's later
        self._scanned_at = -_RESCAN_S

    def holds_any(self, paths: Collection[str]) -> bool:
        """Whether a member that the last look saw has one of these files open or mapped."""
        return any(files.holds_any(pid, paths) for pid in self._began)

    def usage(self, *, waits: bool = False) -> Usage | None:
        """Sums over the members; None where /proc does not tell. `waits`: also `waited_s`, a look at every thread."""
        fresh = time.monotonic() - self._scanned_at < _RESCAN_S
        stats = [stat(pid) for pid in self._began] if fresh else []
        present = [found for found in stats if found and not found.zombie and found.began == self._began[found.pid]]
        if not stats or len(present) < len(stats):
            self._began = {member.pid: member.began for member in living(self._session, self._cookie)}
            self._scanned_at = time.monotonic()
            # Anew, because the scan took its time, in which a busy member used the CPU.
            present = [found for pid, began in self._began.items() if (found := stat(pid)) and found.began == began]
        at, cpu_s, waited_s, read, moved, seen = time.monotonic(), 0.0, 0.0, 0, 0, False
        for member in present:
            cpu_s += member.cpu_s
            waited_s += _waited_s(member.pid) if waits else 0.0
            try:
                lines = dict(line.split(": ") for line in Path(f"/proc/{member.pid}/io").read_text().splitlines())
                # rchar counts read(2) from the page cache too; read_bytes also what page faults of a mapping fetch.
                counts = [int(lines[name]) for name in ("rchar", "read_bytes", "wchar", "write_bytes")]
                read, moved = read + max(counts[:2]), moved + sum(counts)
                seen = True
            except (OSError, KeyError, ValueError):
                continue
        return Usage(bytes_read=read, bytes_moved=moved, cpu_s=cpu_s, waited_s=waited_s, at=at) if seen else None


def _waited_s(pid: int) -> float:
    """How long the threads of a process were ready to run and did not; 0.0 where the kernel keeps no such count."""
    waited_ns = 0
    with contextlib.suppress(OSError):  # it has ended
        for task in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError, ValueError, IndexError):  # a thread that has ended; no CONFIG_SCHED_INFO
                waited_ns += int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[1])
    return waited_ns / 1e9
