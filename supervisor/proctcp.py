"""The kernel's TCP table: /proc/net/tcp and tcp6, the one reading of them. Empty where there is none."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path
from typing import Final, NamedTuple

# From include/net/tcp_states.h, as the table prints them.
ESTABLISHED: Final = "01"
LISTEN: Final = "0A"

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class TcpSocket(NamedTuple):
    """One row: whose it is, and between which ends.

    Attributes:
        address, port: this end.
        peer, peer_port: the other end; unspecified and 0 for a listener.
        uid: of the owner.
        inode: N in a descriptor's `socket:[N]`; "0" while nobody has accepted the connection, and in some sandboxes.
        where: the file and the number of the line.
    """

    address: Address
    port: int
    peer: Address
    peer_port: int
    uid: int
    inode: str
    where: str

    @property
    def far_end(self) -> str:
        """The peer, as `address:port`."""
        return _end(self.peer, self.peer_port)

    def __str__(self) -> str:
        return f"{_end(self.address, self.port)} -> {self.far_end} inode {self.inode}"


def sockets(state: str, *, pid: int | None = None) -> list[TcpSocket]:
    """The sockets in one state, as the network namespace of a process shows them; None: our own."""
    found = []
    for table in ("tcp", "tcp6"):
        path = f"/proc/{'' if pid is None else f'{pid}/'}net/{table}"
        try:
            rows = Path(path).read_text().splitlines()
        except OSError:
            continue
        for number, row in enumerate(rows[1:], start=2):
            fields = row.split()
            if fields[3] == state:
                ends = (*_read_end(fields[1]), *_read_end(fields[2]))
                found.append(TcpSocket(*ends, int(fields[7]), fields[9], f"{path} line {number}"))
    return found


def plain(address: Address) -> Address:
    """An IPv4 address in the guise of an IPv6 one, undressed."""
    return getattr(address, "ipv4_mapped", None) or address


def _read_end(text: str) -> tuple[Address, int]:
    digits, _, port = text.rpartition(":")
    # Words of 32 bits, each printed as a number of this machine's byte order.
    words = [int(digits[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(digits), 8)]
    return plain(ipaddress.ip_address(b"".join(words))), int(port, 16)


def _end(address: Address, port: int) -> str:
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
