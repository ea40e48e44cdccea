"""Connections that leave the process tree refuse the seal."""

from __future__ import annotations

import os
import socket

import pytest

from hooks.contract import Finding
from hooks.contract import step as contract
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
