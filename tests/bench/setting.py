"""Where and how large: the size of a run, the peers' environment, the machine."""

from __future__ import annotations

import os
import platform
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

T = TypeVar("T")

BENCH = Path(__file__).resolve().parent
PROGRAMS = BENCH / "programs"
FAKE = BENCH.parent / "fakes" / "fake_server.py"
ROOT = BENCH.parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One run.

    Attributes:
        size: `full` fills docs/numbers.md, `quick` takes under 2 minutes, `tiny` only proves that all of it works.
        scratch: a folder for stamps, configurations and captured output.
        peers: the virtual environment of the real peers; None: they are left out, and the rows say so.
        rehearse: the command that rehearses a snapshot; it takes `--json FILE`.
        seed: of every drawn number.
    """

    size: Literal["full", "quick", "tiny"]
    scratch: Path
    peers: Path | None = None
    rehearse: tuple[str, ...] = ()
    seed: int = 20

    def pick(self, *, full: T, quick: T, tiny: T) -> T:
        """The value for this size."""
        return {"full": full, "quick": quick, "tiny": tiny}[self.size]

    def peer(self, program: str) -> str | None:
        """A program of the peers' environment; None: it is not installed."""
        path = self.peers / "bin" / program if self.peers else None
        return str(path) if path and path.exists() else None

    def file(self, name: str) -> Path:
        """A path in the scratch folder where nothing is yet."""
        path = self.scratch / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        return path


@dataclass(slots=True)
class Ports:
    """Ports that were free a moment ago, none twice: a run asks for several before any of them is bound."""

    _given: set[int] = field(default_factory=set)

    def next(self) -> int:
        """One more."""
        while True:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = int(probe.getsockname()[1])
            if port not in self._given:
                self._given.add(port)
                return port


def machine() -> dict[str, Any]:
    """The machine, as far as it matters for numbers."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor() or "unknown",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _field(path: str, name: str) -> str:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def status_kib(pid: int | str, name: str) -> int:
    """A size from /proc/<pid>/status: VmRSS, or VmHWM for its peak."""
    return int(_field(f"/proc/{pid}/status", name).split()[0] or 0)


def cpu_s(pid: int) -> float:
    """User and system time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
