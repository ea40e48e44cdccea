"""A reading of a child's process tree: what each process maps, holds open and is connected to."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from hooks.contract.findings import ContractUnseen
from supervisor.linux import processes
from supervisor.linux.files import DELETED, Descriptor, FileId, MapLine, descriptors, identify, maps, name_of
from supervisor.linux.sockets import ESTABLISHED, LISTEN, TcpSocket, sockets

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from supervisor.child import Child

__all__ = ["Holder", "Network", "Process", "Tree", "members", "read_network", "read_tree"]

T = TypeVar("T")

_CURE: Final = "run the supervisor as the child's user, or as root"


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process of the tree, and its name as the kernel has it."""

    pid: int
    name: str = ""
    mappings: tuple[MapLine, ...] = ()
    descriptors: tuple[Descriptor, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """The processes, and which file is now at each path that they or the profile name; missing: there is none."""

    processes: tuple[Process, ...]
    files: Mapping[str, FileId]


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a socket, and by which descriptor."""

    pid: int
    fd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """The TCP sockets that the tree can see.

    Attributes:
        held: who of the tree holds a socket, by its inode.
        established: all connections of the tree's network namespaces, other people's too.
        listening: where the tree listens.
    """

    held: Mapping[str, Holder]
    established: tuple[TcpSocket, ...]
    listening: tuple[TcpSocket, ...]


def members(child: Child) -> list[int]:
    """The processes of the child's tree, its leader first.

    Raises:
        ContractUnseen: there is no /proc, or no child.
    """
    if not processes.AVAILABLE:
        raise ContractUnseen("it is read from Linux's /proc, and there is none here")
    if child.pid is None:
        raise ContractUnseen("there is no child yet; the contract is a Step for before_seal")
    found = processes.members(child.pid, child.cookie)
    if not found:
        raise ContractUnseen(f"no process of pid {child.pid} is alive")
    return found


def read_tree(child: Child, named: Iterable[str] = ()) -> Tree:
    """Reads mappings and descriptors (blocking: call it in a thread).

    Args:
        child: whose tree.
        named: more paths whose files to identify.

    Raises:
        ContractUnseen: a process may not be looked at.
    """
    processes = [
        Process(
            pid=pid,
            name=name_of(pid),
            mappings=_seen(maps(pid), pid, "maps"),
            descriptors=_seen(descriptors(pid), pid, "fd"),
        )
        for pid in members(child)
    ]
    paths = set(named)
    for process in processes:
        paths |= {line.path for line in process.mappings} | {held.target for held in process.descriptors}
    paths |= {path.removesuffix(DELETED) for path in paths}
    found = {path: identify(path) for path in paths if path.startswith("/")}
    return Tree(processes=tuple(processes), files={path: file for path, file in found.items() if file})


def read_network(child: Child) -> Network:
    """Reads who is connected to whom (blocking: call it in a thread).

    Raises:
        ContractUnseen: a process may not be looked at.
    """
    held: dict[str, Holder] = {}
    namespaces: dict[str, int] = {}
    for pid in members(child):
        for descriptor in _seen(descriptors(pid), pid, "fd"):
            if descriptor.target.startswith("socket:["):
                held.setdefault(descriptor.target[8:-1], Holder(pid, descriptor.fd))
        try:
            namespaces.setdefault(os.readlink(f"/proc/{pid}/ns/net"), pid)
        except OSError:
            namespaces.setdefault("", pid)
    pids = namespaces.values()
    return Network(
        held=held,
        established=tuple(row for pid in pids for row in sockets(ESTABLISHED, pid=pid)),
        listening=tuple(row for pid in pids for row in sockets(LISTEN, pid=pid) if row.inode in held),
    )


def _seen(read: tuple[T, ...] | None, pid: int, name: str) -> tuple[T, ...]:
    if read is None:
        raise ContractUnseen(f"/proc/{pid}/{name} may not be read: {_CURE}")
    return read
