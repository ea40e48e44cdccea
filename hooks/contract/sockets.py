"""Which connections leave the tree: a pure function from a reading to findings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hooks.contract.findings import Finding

if TYPE_CHECKING:
    from hooks.contract.tree import Holder, Network
    from supervisor.linux.sockets import TcpSocket

__all__ = ["connections"]

_LOOPBACK: Final = "have it use loopback (GLOO_SOCKET_IFNAME=lo, NCCL_SOCKET_IFNAME=lo, the engine's own address)"
_FIX: Final = "close it before the seal: a client's keep-alive connection, a request, a download, a metrics exporter"


def connections(network: Network, leader: int) -> list[Finding]:
    """No established TCP connection has one end in the tree and the other elsewhere.

    Connections inside of the tree, such as those of gloo and NCCL, are carried; one that does not use loopback is a
    warning, because in another container the host's own address is another one.
    The supervisor's own process is elsewhere. So is the peer of a connection that waits to be accepted, which no
    process holds yet. Unix sockets are not judged: /proc does not tell who is at their other end.

    Args:
        network: the reading.
        leader: whose a connection is that waits to be accepted.
    """
    ours = {
        (row.address, row.port, row.peer, row.peer_port)
        for row in network.established
        if row.inode in network.held or _waits(row, network)
    }
    found = []
    for row in network.established:
        end = (row.address, row.port, row.peer, row.peer_port)
        if end not in ours:
            continue
        holder = network.held.get(row.inode)
        if (row.peer, row.peer_port, row.address, row.port) in ours:
            if not row.address.is_loopback and holder and end < (row.peer, row.peer_port, row.address, row.port):
                found.append(_inside(row, holder))
            continue
        what = f"is connected to {row.far_end}, which is outside of its process tree"
        found.append(
            Finding(
                check="connection",
                pid=holder.pid if holder else leader,
                what=what if holder else f"{what}, and has not accepted that connection yet",
                where=f"{row.where}, fd {holder.fd}" if holder else row.where,
                line=str(row),
                fix=_FIX,
            )
        )
    return found


def _inside(row: TcpSocket, holder: Holder) -> Finding:
    return Finding(
        check="connection",
        severity="warning",
        pid=holder.pid,
        what=f"is connected to its own process tree by {row.far_end}, an address that another container does not have",
        where=f"{row.where}, fd {holder.fd}",
        line=str(row),
        fix=_LOOPBACK,
    )


def _waits(row: TcpSocket, network: Network) -> bool:
    """Whether it is a connection to the tree that nobody has accepted."""
    return row.inode == "0" and any(
        listener.port == row.port and (listener.address == row.address or listener.address.is_unspecified)
        for listener in network.listening
    )
