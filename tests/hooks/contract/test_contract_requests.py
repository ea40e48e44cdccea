"""Requests in flight refuse the seal, by the engine's own count."""

from __future__ import annotations

import socket
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from hooks.contract import requests as contract_requests
from hooks.contract.requests import read_load
from supervisor import State
from supervisor.dialect import Dialect
from supervisor.engines.llama_cpp.dialect import busy_slots
from supervisor.errors import StepFailed
from support import is_in
from tools.contract import http, profile, sealed, serving
from tools.serve import running_raw

pytestmark = pytest.mark.anyio


async def test_a_request_in_flight(tmp_path: Path) -> None:
    """A completion that the server works on refuses the seal; once it is answered, the seal succeeds."""
    gate = tmp_path / "gate"
    async with (
        serving(profile("--gate", str(gate), "--parallel", "2")) as (server, seen),
        server.child.client() as client,
    ):
        body = {"messages": [{"role": "user", "content": "Hi"}]}
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: client.post("/v1/chat/completions", json=body, headers={"Connection": "close"}))
            while not busy_slots((await client.get("/slots", headers={"Connection": "close"})).text):
                await anyio.sleep(0.005)
            with pytest.raises(StepFailed) as caught:
                await server.seal()
            assert [finding.check for finding in seen] == ["in-flight", "connection"]
            assert seen[0].where == f"{server.url}/slots"
            assert "works on 1 request (" in str(caught.value)
            assert is_in(server, State.READY)
            gate.touch()
        await sealed(server, seen)


async def test_a_server_that_one_client_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single-threaded server that waits for an idle client answers nobody: both are told, and the seal is refused."""
    monkeypatch.setattr(contract_requests, "_ANSWER_S", 0.2)
    command = http("import http.server\nhttp.server.ThreadingHTTPServer = http.server.HTTPServer\n")
    async with serving(profile(command=command)) as (server, seen):
        with socket.create_connection((server.child.host, server.child.port)) as client:
            client.sendall(b"GET /health HTTP/1.1\r\n\r\n")
            assert client.recv(1)
            with pytest.raises(StepFailed, match="does not say whether it is at work"):
                await server.seal()
            assert {finding.check for finding in seen} == {"in-flight", "connection"}
            assert is_in(server, State.READY)
        await server.seal()


@pytest.mark.parametrize("status", [404, 401, 501])
async def test_a_server_without_slots(status: int) -> None:
    """Where there are no slots the gauges count, and where there are none either, nothing is known."""
    pages = {"/metrics": "llamacpp:requests_processing 2\n"}

    def answer(head: str) -> bytes:
        page = pages.get(head.split()[1])
        line, text = ("200 OK", page) if page else (f"{status} No", '[{"id": 0, "is_processing": true}]')
        return f"HTTP/1.1 {line}\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n{text}".encode()

    with running_raw(answer) as child:
        load = await read_load(child)
        assert load and (load.requests, load.where) == (2, f"{child.url}/metrics")
        pages.clear()
        assert await read_load(child) is None


async def test_an_engine_that_counts_nothing_is_not_asked() -> None:
    """Without readings in the dialect no route is guessed at, and nothing is known of requests."""
    asked: list[str] = []

    def answer(head: str) -> bytes:
        asked.append(head)
        return b"HTTP/1.1 200 OK\r\n\r\n[]"

    with running_raw(answer) as child:
        assert await read_load(replace(child, profile=replace(child.profile, dialect=Dialect()))) is None
    assert not asked
