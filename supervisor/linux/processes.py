"""What Linux's /proc says about a supervised session; every function steps aside (None, empty) where there is none.

Membership is wider than the session: a descendant that called setsid(2), a daemon for example, is told by the *cookie*,
a variable that `launch` puts into the child's environment, with another value in every life.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from supervisor.linux.files import argv, links
from supervisor.linux.sockets import TcpSocket, listeners, plain
from supervisor.redact import Redactor

COOKIE: Final = "WARMBOOT_LIFE"
AVAILABLE: Final = sys.platform == "linux" and Path("/proc/self/stat").exists()

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_RESCAN_S: Final = 2.0  # a look at all of /proc takes 70 ms among 1600 processes
_MAX_BYTES: Final = 1 << 20  # of an environment; `launch` puts the cookie first
_SHOWN: Final = 120  # characters of a command line
# Fields of /proc/<pid>/stat after the command name, proc_pid_stat(5).
_STATE, _SESSION, _CPU, _STARTED = 0, 3, slice(11, 15), 19


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What living members and children that they reaped have used; of sockets only what read(2) and write(2) moved."""

    bytes_read: int
    bytes_written: int
    cpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who listens: `mine` when it belongs to the session that was asked about; `pid` is None when we cannot see it."""

    pid: int | None
    argv: tuple[str, ...]
    mine: bool

    def command(self, redact: Redactor) -> str | None:
        """Its command line for an error: masked first and cut then, because half a secret would not be recognised."""
        return None if self.pid is None else " ".join(redact.argv(self.argv))[:_SHOWN] or "?"


class Session:
    """A session whose members are remembered: all of /proc is read at most every 2 s, or when a member is gone."""

    def __init__(self, session: int, cookie: str | None = None) -> None:
        self._session = session
        self._cookie = cookie
        self._started: dict[int, str] = {}  # when each member began: its number may be another's later
        self._scanned_at = -_RESCAN_S

    def usage(self) -> Usage | None:
        """Sums over the members; None where /proc does not tell."""
        fresh = time.monotonic() - self._scanned_at < _RESCAN_S
        stats = {pid: _stat(pid) for pid in self._started} if fresh else {}
        if not stats or any(not fields or fields[_STARTED] != self._started[pid] for pid, fields in stats.items()):
            stats = {pid: _stat(pid) for pid in members(self._session, self._cookie)}
            self._started = {pid: fields[_STARTED] for pid, fields in stats.items() if fields}
            self._scanned_at = time.monotonic()
        cpu_s, read, written, seen = 0.0, 0, 0, False
        for pid, fields in stats.items():
            cpu_s += sum(map(int, fields[_CPU])) / _TICKS_PER_S if fields else 0.0
            try:
                lines = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
                # rchar counts read(2) from the page cache too; read_bytes also what page faults of a mapping fetch.
                read += max(int(lines["rchar"]), int(lines["read_bytes"]))
                written += max(int(lines["wchar"]), int(lines["write_bytes"]))
                seen = True
            except (OSError, KeyError, ValueError):
                continue
        return Usage(bytes_read=read, bytes_written=written, cpu_s=cpu_s) if seen else None


def members(session: int, cookie: str | None = None) -> list[int]:
    """Living processes of a session, the leader first, and those elsewhere that carry the cookie. Zombies are dead."""
    mark = f"\0{COOKIE}={cookie}\0".encode() if cookie else None
    leader = _stat(session)
    began = int(leader[_STARTED]) if leader else 0  # who is older is no descendant, and reading environments is slow
    found = []
    for pid in _pids():
        fields = _stat(pid)
        if not fields:
            continue
        if int(fields[_SESSION]) == session or (mark and int(fields[_STARTED]) >= began and _carries(pid, mark)):
            found.append(pid)
    return sorted(found, key=lambda pid: (pid != session, pid))


def owners(port: int, session: int, cookie: str | None = None, *, host: str | None = None) -> list[Owner]:
    """Who listens on the port; with `host`, who would receive a connection to it. Empty where /proc is silent.

    With `host`, a leader that holds all those sockets stands for the members that share them.

    A listener is a member's when a member holds its socket, whoever else does. A member whose descriptors may not be
    read (it changed its user, or may not be traced) makes a listener ours that nobody is seen to hold and whose socket
    belongs to that member's user: there is no better proof, and refusing would refuse every such server. All other
    listeners are somebody else's, also those whose process this user cannot see.
    """
    found = _owners(port, session, cookie, host)
    if any(owner.pid is None and not owner.mine for owner in found):
        # Its socket may have been closed or handed on between two files of /proc.
        found = _owners(port, session, cookie, host)
    return found


def _owners(port: int, session: int, cookie: str | None, host: str | None) -> list[Owner]:
    receiving = {f"socket:[{listener.inode}]": listener.uid for listener in _receiving(port, host)}
    if not receiving:
        return []
    if host is not None and receiving.keys() <= set(_descriptors(session) or ()):
        return [Owner(pid=session, argv=argv(session), mine=True)]  # mostly so; then all of /proc need not be read
    found, hidden = [], set()
    mine = members(session, cookie)
    unseen = dict(receiving)
    for pid in mine + [pid for pid in _pids() if pid not in mine]:
        if not unseen and pid not in mine:
            break  # looking at everybody is slow, and almost never needed
        held = _descriptors(pid)
        if held is None:
            if pid in mine:
                hidden |= _uids(pid)
        elif not (receiving if pid in mine else unseen).keys().isdisjoint(held):
            found.append(Owner(pid=pid, argv=argv(pid), mine=pid in mine))
            unseen = {name: uid for name, uid in unseen.items() if name not in held}
    return found + [Owner(pid=None, argv=(), mine=uid in hidden) for uid in unseen.values()]


def listening_ports(session: int, cookie: str | None = None) -> list[int]:
    """TCP ports on which members listen, to tell a user that the server chose another one."""
    held = {name for pid in members(session, cookie) for name in _descriptors(pid) or ()}
    return sorted({listener.port for listener in _listeners() if f"socket:[{listener.inode}]" in held})


def _receiving(port: int, host: str | None) -> list[TcpSocket]:
    """The listeners among which the kernel chooses for a connection to that address."""
    there = [listener for listener in _listeners() if listener.port == port]
    if host is None:
        return there
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM) if AVAILABLE else []
    except (OSError, UnicodeError):
        return []
    found: set[TcpSocket] = set()
    for address in {plain(ipaddress.ip_address(str(info[4][0]).partition("%")[0])) for info in infos}:
        # The order of __inet_lookup_listener: the address itself, the wildcard of its family, the dual-stack wildcard.
        # A less exact one that is there as well gets nothing.
        same = [listener for listener in there if listener.address == address]
        wild = [listener for listener in there if listener.address.is_unspecified]
        found |= set(same or [w for w in wild if w.address.version == address.version] or wild)
    return list(found)


def _listeners() -> list[TcpSocket]:
    # No inode: some sandboxes' /proc does not tell.
    return [listener for listener in listeners() if listener.inode != "0"]


def _pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()] if AVAILABLE else []


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    return bool(_stat(pid))


def _stat(pid: int) -> list[str]:
    """Fields of /proc/<pid>/stat after the command name; empty for a process that is no more, or a zombie."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY)  # a third of what Path.read_text costs, and this runs often
    except OSError:
        return []
    try:
        data = os.read(fd, 4096)
    except OSError:
        return []
    finally:
        os.close(fd)
    # The name may hold spaces and parentheses: the fields begin after the last one.
    fields = data.rpartition(b")")[2].decode().split()
    return fields if len(fields) > _STARTED and fields[_STATE] not in "ZX" else []


def _carries(pid: int, mark: bytes) -> bool:
    try:
        if Path(f"/proc/{pid}").stat().st_uid != os.geteuid():
            return False
        with Path(f"/proc/{pid}/environ").open("rb") as file:
            return mark in b"\0%b\0" % file.read(_MAX_BYTES)
    except OSError:
        return False


def _descriptors(pid: int) -> list[str] | None:
    """What a process holds open; None when we may not look."""
    held = links(pid)
    return None if held is None else list(held.values())


def _uids(pid: int) -> set[int]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return set()
    return {int(uid) for line in lines if line.startswith("Uid:") for uid in line.split()[1:]}
