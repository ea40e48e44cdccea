"""Which connections leave the tree: a pure function from a reading to findings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hooks.contract.findings import Finding

if TYPE_CHECKING:
    from hooks.contract.tree import Network
    from supervisor.linux.sockets import TcpSocket

__all__ = ["connections"]

_FIX: Final = "close it before the seal: a client's keep-alive connection, a request, a download, a metrics exporter"


def connections(network: Network, leader: int) -> list[Finding]:
    """No established TCP connection has one end in the tree and the other elsewhere.

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
        if end not in ours or (row.peer, row.peer_port, row.address, row.port) in ours:
            continue
        holder = network.held.get(row.inode)
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


def _waits(row: TcpSocket, network: Network) -> bool:
    """Whether it is a connection to the tree that nobody has accepted."""
    return row.inode == "0" and any(
        listener.port == row.port and (listener.address == row.address or listener.address.is_unspecified)
        for listener in network.listening
    )
