"""The kernel's TCP table: /proc/net/tcp and tcp6, the one reading of them. Empty where there is none.

Listeners come from NETLINK_SOCK_DIAG (sock_diag(7)) where the kernel has it: 0.05 ms, while the table is a walk of
the hash of all connections, 8 to 40 ms on a large machine. gVisor does not have it.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

# From include/net/tcp_states.h, as the table prints them.
ESTABLISHED: Final = "01"
LISTEN: Final = "0A"

_SOCK_DIAG: Final = 4  # NETLINK_SOCK_DIAG; Python has no name for it
_BY_FAMILY: Final = 20  # SOCK_DIAG_BY_FAMILY
_DUMP: Final = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_ERROR, _DONE = 2, 3  # NLMSG_*
_LISTEN_BIT: Final = 1 << 10

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


def listeners() -> list[TcpSocket]:
    """The listening sockets of our own network namespace."""
    try:
        return [*_asked(socket.AF_INET, 4), *_asked(socket.AF_INET6, 16)]
    except (OSError, AttributeError):  # no such protocol here, or no netlink at all
        return sockets(LISTEN)


def _asked(family: int, address_bytes: int) -> Iterator[TcpSocket]:
    """Listeners of one family, as the kernel dumps them: inet_diag_msg of include/uapi/linux/inet_diag.h."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as link:
        link.settimeout(1.0)
        body = struct.pack("=BBBBI48x", family, socket.IPPROTO_TCP, 0, 0, _LISTEN_BIT)
        link.send(struct.pack("=IHHII", 16 + len(body), _BY_FAMILY, _DUMP, 1, 0) + body)
        while True:
            data = link.recv(1 << 18)
            while data:
                length, kind = struct.unpack_from("=IH", data)
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    raise OSError("the kernel refused the question")
                (port,) = struct.unpack_from(">H", data, 20)
                address = plain(ipaddress.ip_address(data[24 : 24 + address_bytes]))
                uid, inode = struct.unpack_from("=II", data, 80)
                yield TcpSocket(address, port, address, 0, uid, str(inode), "sock_diag")
                data = data[(length + 3) & ~3 :]


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
