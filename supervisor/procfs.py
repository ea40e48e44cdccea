"""What Linux's /proc says about a supervised session; every function steps aside (None, empty) where there is none."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

AVAILABLE: Final = sys.platform == "linux" and Path("/proc/self/stat").exists()

_LISTEN: Final = "0A"  # TCP_LISTEN in include/net/tcp_states.h, as /proc/net/tcp prints it
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a session has used since it began: bytes read (files, not sockets) and CPU seconds, over living members."""

    bytes_read: int
    cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A process that listens: `mine` when it belongs to the session that was asked about."""

    pid: int
    command: str
    mine: bool


def members(session: int) -> list[int]:
    """Process ids of a session, the leader first."""
    found = [pid for pid, fields in _stats() if int(fields[3]) == session]
    return sorted(found, key=lambda pid: (pid != session, pid))


def usage(session: int) -> Usage | None:
    """Sums over the session; None where /proc does not tell."""
    bytes_read, cpu_s, seen = 0, 0.0, False
    for pid, fields in _stats():
        if int(fields[3]) != session:
            continue
        cpu_s += (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
        try:
            lines = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
            # rchar counts read(2) from the page cache too; read_bytes also counts what page faults of a mapping fetch.
            bytes_read += max(int(lines["rchar"]), int(lines["read_bytes"]))
            seen = True
        except (OSError, KeyError, ValueError):
            continue
    return Usage(bytes_read=bytes_read, cpu_s=cpu_s) if seen else None


def owners(port: int, session: int) -> list[Owner]:
    """Every visible process that listens on a TCP port of this network namespace. SO_REUSEPORT allows several."""
    inodes = {f"socket:[{inode}]" for inode in _listening(port)}
    if not inodes:
        return []
    mine = set(members(session))
    found = []
    for pid, _ in _stats():
        if not inodes.isdisjoint(_descriptors(pid)):
            found.append(Owner(pid=pid, command=_command(pid), mine=pid in mine))
    return found


def listening_ports(session: int) -> list[int]:
    """TCP ports on which the session listens, to tell a user that the server chose another one."""
    held = {name for pid in members(session) for name in _descriptors(pid)}
    return sorted({port for port, inode in _listeners() if f"socket:[{inode}]" in held})


def _listening(port: int) -> list[str]:
    return [inode for seen, inode in _listeners() if seen == port]


def _listeners() -> list[tuple[int, str]]:
    found = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            fields = row.split()
            if fields[3] == _LISTEN:
                found.append((int(fields[1].rpartition(":")[2], 16), fields[9]))
    return found


def _stats() -> list[tuple[int, list[str]]]:
    """(pid, fields of /proc/<pid>/stat after the command name) of every process: fields[3] is the session."""
    found = []
    for entry in os.listdir("/proc") if AVAILABLE else ():
        if entry.isdigit():
            try:
                # The name may hold spaces and parentheses: the fields begin after the last one.
                fields = Path(f"/proc/{entry}/stat").read_text(errors="replace").rpartition(")")[2].split()
            except OSError:
                continue
            if len(fields) > 12:
                found.append((int(entry), fields))
    return found


def _descriptors(pid: int) -> list[str]:
    names = []
    with contextlib.suppress(OSError):  # another user's process, or gone by now
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):  # closed since it was listed
                names.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return names


def _command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "?"
    return words[:120] or "?"


def accepts(host: str, port: int, *, timeout_s: float = 0.5) -> bool:
    """Whether anybody accepts connections there now (a blocking connect; loopback answers in microseconds)."""
    try:
        with socket.create_connection((host, port), timeout=timeout_s):
            return True
    except OSError:
        return False
