"""Which processes belong to a supervised child, and what they use; empty or None where there is no /proc.

A process is a member by any of four signs: its session, its descent (a chain of parents that are members), the *cookie*
(a variable that `launch` puts into the child's environment, with another value in every life), or that it was a member
when it was last seen. The last one is for daemons: their parent has ended, and they may have left session and
environment. Where this process adopts orphans (`subreaper.py`), such a daemon is its child, which is a sign as well.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from supervisor.linux import subreaper
from supervisor.linux.files import links
from supervisor.redact import Redactor

COOKIE: Final = "WARMBOOT_LIFE"
AVAILABLE: Final = sys.platform == "linux" and Path("/proc/self/stat").exists()

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_MAX_BYTES: Final = 1 << 20  # of an environment; `launch` puts the cookie first
_SHOWN: Final = 120  # characters of a command line


class Stat(NamedTuple):
    """A part of /proc/<pid>/stat, proc_pid_stat(5).

    Attributes:
        pid: of the process.
        parent, session: of the process; the parent is 0 outside of our PID namespace.
        zombie: it has ended, and nobody has asked for its exit status.
        cpu_s: used by it and by children that it has reaped.
        began: when it started, in ticks since the boot; with `pid`, which process it is.
    """

    pid: int
    parent: int
    session: int
    zombie: bool
    cpu_s: float
    began: int


@dataclass(slots=True)
class _Family:
    """What is remembered of one life: the leader, members that were seen, and who wants to hear of strays.

    Attributes:
        leader: the child; its number is its session's, too.
        began: when it started; who is older is no member.
        on_stray: called, on any thread, for each new member that neither session nor cookie tells.
        seen: members by number, and when each began.
    """

    leader: int
    began: int
    on_stray: Callable[[Stat], None]
    seen: dict[int, int] = field(default_factory=dict)


_families: dict[str, _Family] = {}  # by cookie
helpers: set[int] = set()  # processes that we started ourselves and that are no members: guardians
_lock = threading.Lock()


def command_line(argv: Sequence[str], redact: Redactor) -> str:
    """A command line for an error: masked first and cut then, because half a secret would not be recognised."""
    line = " ".join(redact.argv(argv)).rstrip()  # who set a title of its own has filled the old one's room
    return f"{line[:_SHOWN]}..." if len(line) > _SHOWN else line or "?"


def remember(cookie: str, leader: int, on_stray: Callable[[Stat], None]) -> None:
    """Begins to remember the members of a life, until `forget`."""
    began = stat(leader)
    with _lock:
        _families[cookie] = _Family(leader=leader, began=began.began if began else 0, on_stray=on_stray)


def forget(cookie: str) -> dict[int, int]:
    """Forgets a life; returns the members that were seen, and when each began."""
    with _lock:
        family = _families.pop(cookie, None)
        return dict(family.seen) if family else {}


def lives() -> list[tuple[int, str]]:
    """The lives that are remembered: leader and cookie of each."""
    with _lock:
        return [(family.leader, cookie) for cookie, family in _families.items()]


def members(session: int, cookie: str | None = None) -> list[int]:
    """Living processes of a life, the leader first: by session, descent, cookie or memory. Zombies are dead."""
    return [member.pid for member in living(session, cookie)]


def living(session: int, cookie: str | None = None) -> list[Stat]:
    """The same as `members`, with what /proc says of each."""
    with _lock:
        family = _families.get(cookie or "")
        seen = dict(family.seen) if family else {}
        # Nobody enters a session that another made, and reading the environments of all lives' members, at the end of
        # each life, took 25 ms of CPU among 15 servers.
        elsewhere = {other.leader for other in _families.values() if other is not family}
    everybody = {pid: found for pid in pids() if (found := stat(pid))}
    leader = everybody.get(session)
    began = family.began if family else leader.began if leader else 0
    # Who is older is no descendant.
    others = {
        pid: found
        for pid, found in everybody.items()
        if found.began >= began and not found.zombie and found.session not in elsewhere
    }
    marked = _take(others, lambda found: found.session == session)
    strays = _take(others, lambda found: seen.get(found.pid) == found.began or (bool(family) and _adopted(found)))
    strays |= _descendants(others, {**marked, **strays})
    if cookie:  # last, because reading environments is slow
        mark = f"\0{COOKIE}={cookie}\0".encode()
        carriers = _take(others, lambda found: _carries(found.pid, mark))
        strays |= _descendants(others, carriers)
        marked |= carriers
    present = {**marked, **strays}
    if family:
        with _lock:
            new = [stray for stray in strays.values() if family.seen.get(stray.pid) != stray.began]
            family.seen = {member.pid: member.began for member in present.values()}
        for stray in new:
            family.on_stray(stray)
    return sorted(present.values(), key=lambda member: (member.pid != session, member.pid))


def _take(others: dict[int, Stat], belongs: Callable[[Stat], bool]) -> dict[int, Stat]:
    """Moves those that belong out of the others."""
    taken = {pid: found for pid, found in others.items() if belongs(found)}
    for pid in taken:
        del others[pid]
    return taken


def _descendants(others: dict[int, Stat], ancestors: Mapping[int, Stat]) -> dict[int, Stat]:
    """Moves the descendants of the ancestors out of the others."""
    found: dict[int, Stat] = {}
    while True:
        parents = {**ancestors, **found}
        children = _take(others, lambda other: other.parent in parents)  # noqa: B023  called in this round only
        if not children:
            return found
        found |= children


def _adopted(found: Stat) -> bool:
    """Whether it is an orphan that the kernel gave us: our child, in a session that nobody here made."""
    return (
        found.parent == os.getpid()
        and subreaper.adopts_orphans()
        and found.session != os.getsid(0)
        and found.pid not in helpers
    )


def own_children() -> list[Stat]:
    """Our children, zombies and adopted ones included."""
    listed_pids: list[str] = []
    listed = False
    for task in Path("/proc/self/task").iterdir() if AVAILABLE else ():
        with contextlib.suppress(OSError):  # a thread that has just ended; a kernel without CONFIG_PROC_CHILDREN
            listed_pids += (task / "children").read_text().split()
            listed = True
    found = [stat(pid) for pid in (map(int, listed_pids) if listed else pids())]
    return [child for child in found if child and child.parent == os.getpid()]


def pipe_writers(inodes: Collection[int]) -> dict[int, int]:
    """Processes that hold the write end of one of these pipes, and when each began."""
    wanted = {f"pipe:[{inode}]" for inode in inodes}
    found = {}
    for pid in pids():
        held = [fd for fd, target in (links(pid) or {}).items() if target in wanted]  # forks of ours: the read ends
        if any(_written(pid, fd) for fd in held) and (who := stat(pid)) and not who.zombie:
            found[pid] = who.began
    return found


def _written(pid: int, fd: int) -> bool:
    try:
        return bool(Path(f"/proc/{pid}/fd/{fd}").lstat().st_mode & 0o200)
    except OSError:
        return False


def pids() -> list[int]:
    """Every process that this PID namespace shows."""
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()] if AVAILABLE else []


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    found = stat(pid)
    return found is not None and not found.zombie


def exit_status(pid: int, began: int) -> int | None:
    """How a zombie ended, as wait(2) gives it; None when its parent took that, or we may not know."""
    fields = _stat_fields(pid)
    if len(fields) < 50 or fields[0] != b"Z" or int(fields[19]) != began:
        return None
    return int(fields[49])


def stat(pid: int) -> Stat | None:
    """What /proc/<pid>/stat says; None for a process that is no more."""
    fields = _stat_fields(pid)
    if len(fields) < 20:
        return None
    return Stat(
        pid=pid,
        parent=int(fields[1]),
        session=int(fields[3]),
        zombie=fields[0] in (b"Z", b"X"),
        cpu_s=sum(map(int, fields[11:15])) / _TICKS_PER_S,
        began=int(fields[19]),
    )


def _stat_fields(pid: int) -> list[bytes]:
    """The fields from the third on, proc_pid_stat(5); none for a process that is no more."""
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
    return data.rpartition(b")")[2].split()


def _carries(pid: int, mark: bytes) -> bool:
    try:
        if os.geteuid() and Path(f"/proc/{pid}").stat().st_uid != os.geteuid():
            return False
        with Path(f"/proc/{pid}/environ").open("rb") as file:
            return mark in b"\0%b\0" % file.read(_MAX_BYTES)
    except OSError:
        return False
