"""One probe: what it sends, how much it reads, and what it says of listeners that are not what they should be."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import anyio
import pytest

from supervisor.child import Child
from supervisor.errors import WrongModel
from supervisor.profile import Health, Profile, Timeouts
from supervisor.readiness.identity import check_model
from supervisor.readiness.probe import MAX_BODY_BYTES, NotUp, Why, get_text, probe
from supervisor.redact import Redactor
from tools.serve import running_raw

pytestmark = pytest.mark.anyio


def http(body: bytes = b"{}", *headers: str, status: str = "200 OK") -> bytes:
    """An answer that ends with its connection."""
    head = "\r\n".join([f"HTTP/1.1 {status}", *headers, "Connection: close", "", ""])
    return head.encode() + body


def child_at(port: int, *, model_id: str | None = None, path: str = "/health", probe_s: float = 20) -> Child:
    profile = Profile(
        name="any",
        command=("any",),
        port=port,
        health=Health(model_id=model_id, path=path),
        timeouts=Timeouts(probe_s=probe_s),
    )
    return Child(profile=profile, port=port, pid=None, redact=Redactor(()))


async def probed(child: Child) -> NotUp | None:
    async with child.client() as client:
        return await probe(client, child)


@contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A listener that lets `answer` handle each connection, one after the other; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, suppress(OSError):
                    answer(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


async def test_a_probe_asks_for_plain_bytes() -> None:
    """A probe wants no compression, which would let a small answer grow without bound."""
    heads: list[str] = []

    def answer(head: str) -> bytes:
        heads.append(head)
        return http()

    with running_raw(answer) as child:
        assert await probed(child_at(child.port)) is None
    assert "accept-encoding: identity" in heads[0].lower()


async def test_a_compressed_answer_is_unfolded_within_the_bound() -> None:
    """A quarter of a gigabyte of zeros as gzip, sent unasked, costs no more than a few times the bound."""
    packer = zlib.compressobj(wbits=31)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(256)) + packer.flush()
    with running_raw(lambda _: http(bomb, "Content-Encoding: gzip")) as child:
        async with child.client() as client:
            tracemalloc.start()
            try:
                text = await get_text(client, child_at(child.port), "/health")
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
    assert text is not None and len(text) == MAX_BODY_BYTES
    assert peak < 16 * MAX_BODY_BYTES


async def test_a_body_without_an_end_is_read_to_the_bound() -> None:
    """A health answer that never ends is judged by its first MiB."""

    def endless(_: str) -> Iterator[bytes]:
        yield http(b"")
        while True:
            yield bytes(1 << 16)

    with running_raw(endless) as child:
        with anyio.fail_after(20):
            assert await probed(child_at(child.port)) is None


@pytest.mark.parametrize("status", ["404 Not Found", "302 Found", "301 Moved", "405 Method Not Allowed"])
async def test_a_wrong_health_path_is_named(status: str) -> None:
    """A server that does not know the health path, or points elsewhere, makes the detail name path and option."""
    with running_raw(lambda _: http(b"", "Location: /x", status=status)) as child:
        seen = await probed(child_at(child.port, path="/up"))
    assert seen is not None
    assert seen.why is Why.WRONG_PATH
    assert seen.detail.startswith(f"HTTP {status[:3]}")
    assert "/up" in seen.detail and "--health PATH" in seen.detail


async def test_a_server_that_is_not_ready_is_not_told_of_its_path() -> None:
    """A 503 means that the path is right."""
    with running_raw(lambda _: http(b"Loading", status="503 Service Unavailable")) as child:
        seen = await probed(child_at(child.port))
    assert seen == NotUp(why=Why.NOT_YET, detail="HTTP 503: Loading")


async def test_a_tls_listener_is_named() -> None:
    """A server that speaks TLS is named as such, whatever HTTP's library makes of its answer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)  # without a certificate it answers with an alert, which will do

    def handshake(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True):
            pass

    with listening(handshake) as port:
        seen = await probed(child_at(port))
    assert seen is not None
    assert (seen.why, "TLS" in seen.detail) == (Why.NOT_HTTP, True)


async def test_a_listener_that_speaks_something_else_is_named() -> None:
    """What a server says instead of HTTP is shown, in part."""

    def greet(connection: socket.socket) -> None:
        connection.recv(65536)  # closing over unread bytes would reset
        connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n" + bytes(100))

    with listening(greet) as port:
        seen = await probed(child_at(port))
    assert seen is not None
    assert seen.why is Why.NOT_HTTP
    assert "does not speak HTTP" in seen.detail and "SSH-2.0" in seen.detail


async def test_nobody_and_silence_are_two_things() -> None:
    """A port without a listener refuses; a listener that says nothing times out."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        late = await probed(child_at(port, probe_s=0.05))
    refused = await probed(child_at(port))
    assert late is not None and late.why is Why.TIMED_OUT
    assert refused is not None and refused.why is Why.REFUSED


@pytest.mark.parametrize("aliases", [{"aliases": None}, {}, {"aliases": []}, {"aliases": ["b"]}])
async def test_a_model_without_aliases_is_found_by_its_name(aliases: dict[str, object]) -> None:
    """A models list may say `"aliases": null`."""
    body = json.dumps({"data": [{"id": "a", **aliases}]}).encode()
    with running_raw(lambda _: http(body)) as child:
        async with child.client() as client:
            assert await check_model(client, child_at(child.port, model_id="a")) is None
            with pytest.raises(WrongModel, match="it lists 'a'"):
                await check_model(client, replace_model(child_at(child.port), "c"))


def replace_model(child: Child, model_id: str) -> Child:
    """The same child, of which another model is wanted."""
    profile = replace(child.profile, health=replace(child.profile.health, model_id=model_id))
    return replace(child, profile=profile)
