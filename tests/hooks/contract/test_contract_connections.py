"""Connections that leave the process tree refuse the seal."""

from __future__ import annotations

import ipaddress
import os
import socket

import pytest

from hooks.contract import Finding
from hooks.contract import step as contract
from hooks.contract.sockets import connections
from hooks.contract.tree import Holder, Network
from supervisor.linux.sockets import TcpSocket
from support import free_port
from tools.contract import http, profile, refused, sealed, serving

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_client_that_stays_connected(host: str) -> None:
    """An open client connection refuses the seal, over IPv4 and IPv6, and says who is connected to what."""
    async with serving(profile(command=http(), host=host)) as (server, seen):
        with socket.create_connection((host, server.child.port)) as client:
            # Answered, and so accepted: a connection that is not yet is told in other words.
            client.sendall(b"GET /health HTTP/1.1\r\n\r\n")
            assert client.recv(1)
            finding = await refused(server, seen, "connection")
            assert finding.pid == server.pid
            assert f":{client.getsockname()[1]}, which is outside" in finding.what
            assert f":{server.child.port} -> " in finding.line
            assert finding.where.startswith(f"/proc/{server.pid}/net/tcp")
            assert os.readlink(f"/proc/{server.pid}/fd/{finding.where.split()[-1]}").startswith("socket:[")
        await sealed(server, seen)


async def test_a_connection_that_nobody_has_accepted() -> None:
    """A client in the listener's queue is connected too, though no process holds that connection yet."""
    port = free_port()
    command = http(f"import socket\nqueue = socket.create_server(('127.0.0.1', {port}))\n")
    async with serving(profile(command=command)) as (server, seen):
        with socket.create_connection(("127.0.0.1", port)):
            finding = await refused(server, seen, "connection")
            assert "has not accepted that connection yet" in finding.what
        await sealed(server, seen)


async def test_connections_inside_of_the_tree() -> None:
    """Members may be connected to each other: both ends are in the snapshot; also one that is not accepted yet."""
    program = (
        "import os, socket, sys, time\n"
        "door = socket.create_server(('127.0.0.1', 0))\n"
        "if not os.fork():\n"
        "    mine = [socket.create_connection(door.getsockname()) for _ in range(2)]\n"
        "    door.close()\n"
        "    time.sleep(1000)\n"
        "peer, _ = door.accept()\n"
    )
    async with serving(profile(command=http(program))) as (server, seen):
        await sealed(server, seen)


def pair(address: str, *, port: int) -> Network:
    """A tree whose pids 5 and 6 are connected to each other by one address."""
    ip = ipaddress.ip_address(address)
    rows = (
        TcpSocket(ip, port, ip, 7, 0, "11", "/proc/5/net/tcp line 2"),
        TcpSocket(ip, 7, ip, port, 0, "12", "/proc/5/net/tcp line 3"),
    )
    return Network(held={"11": Holder(5, 3), "12": Holder(6, 4)}, established=rows, listening=())


def test_members_that_are_connected_by_the_hosts_own_address() -> None:
    """What gloo and NCCL connect stays in the tree; by an address that only this host has it is warned of."""
    assert connections(pair("127.0.0.1", port=40000), leader=5) == []
    assert connections(pair("::1", port=40000), leader=5) == []
    (finding,) = connections(pair("10.1.2.3", port=40000), leader=5)
    assert (finding.check, finding.severity, finding.pid) == ("connection", "warning", 6)
    assert "10.1.2.3:40000, an address that another container does not have" in finding.what
    assert finding.where == "/proc/5/net/tcp line 3, fd 4"
    assert "GLOO_SOCKET_IFNAME=lo" in finding.fix


async def test_a_warning_waits_for_no_grace() -> None:
    """Only errors are looked for again: a warning that stays costs a seal no time."""
    finding = Finding(check="connection", severity="warning", pid=1, what="w", where="x", fix="f")
    looks = []

    async def look() -> list[Finding]:
        looks.append(finding)
        return [finding]

    assert await contract._with_grace(look) == [finding]
    assert len(looks) == 1


async def test_a_grace_for_what_is_closing() -> None:
    """What is gone a moment later is no finding; what stays is."""
    finding = Finding(check="connection", pid=1, what="w", where="x", fix="f")
    answers = [[finding], [finding], []]

    async def look() -> list[Finding]:
        return answers.pop(0)

    async def stays() -> list[Finding]:
        return [finding]

    assert await contract._with_grace(look) == []
    assert await contract._with_grace(stays) == [finding]
