"""Who listens on a port: a process of the child, or somebody else. Empty where there is no /proc."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from supervisor.linux.files import argv, links
from supervisor.linux.processes import AVAILABLE, command_line, members, pids
from supervisor.linux.sockets import TcpSocket, listeners, plain
from supervisor.redact import Redactor


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who listens: `mine` when it belongs to the session that was asked about; `pid` is None when we cannot see it."""

    pid: int | None
    argv: tuple[str, ...]
    mine: bool

    def command(self, redact: Redactor) -> str | None:
        """Its command line for an error; None when we cannot see it."""
        return None if self.pid is None else command_line(self.argv, redact)


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
    for pid in mine + [pid for pid in pids() if pid not in mine]:
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


def listening_ports(session: int, cookie: str | None = None, *, besides: Sequence[str] = ()) -> list[int]:
    """TCP ports on which members listen, to tell a user that the server chose another one.

    Args:
        session, cookie: whose members.
        besides: regular expressions for command lines: what such a member listens on is for its fellows (gloo, NCCL).
    """
    asked = [pid for pid in members(session, cookie) if not any(re.search(one, " ".join(argv(pid))) for one in besides)]
    held = {name for pid in asked for name in _descriptors(pid) or ()}
    return sorted({listener.port for listener in _listeners() if f"socket:[{listener.inode}]" in held})


def wildcards(port: int, host: str) -> list[str]:
    """Wildcard addresses on which somebody listens who receives connections to that host, which is none itself."""
    return sorted(
        str(listener.address)
        for listener in _receiving(port, host)
        if listener.address.is_unspecified and host != str(listener.address)
    )


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
