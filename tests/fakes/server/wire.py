"""HTTP/1.1 as the fake server speaks it: requests read, replies sent."""

from __future__ import annotations

import json

TYPE_CHECKING = False  # importing typing would cost more time than all the rest
if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from typing import Any

    Json = dict[str, Any]


class Request:
    def __init__(self, method: str, target: str, headers: dict[str, str], body: bytes, keep_alive: bool) -> None:
        self.method, self.headers, self.body, self.keep_alive = method, headers, body, keep_alive
        self.path, _, self.query = target.partition("?")


class Reply:
    """An answer. A chunked one is sent part by part; a cut one breaks off in the middle."""

    def __init__(self, status: int, parts: list[bytes], kind: str, chunked: bool = False, cut: bool = False) -> None:
        self.status, self.parts, self.kind, self.chunked, self.cut = status, parts, kind, chunked, cut


REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 411: "Length Required",
           500: "Internal Server Error", 501: "Not Implemented", 503: "Service Unavailable"}  # fmt: skip
JSON = "application/json; charset=utf-8"


def json_reply(body: object, status: int = 200) -> Reply:
    return Reply(status, [json.dumps(body).encode()], JSON)


def error_body(status: int, kind: str, message: str) -> Json:
    return {"error": {"message": message, "type": kind, "code": status}}


def error_reply(status: int, kind: str, message: str) -> Reply:
    return json_reply(error_body(status, kind, message), status)


def read_requests(client: socket.socket) -> Iterator[Request]:
    """The requests of one connection, until the client has enough. A ValueError when they do not read."""
    with client.makefile("rb") as reader:
        while line := reader.readline(65536):
            method, target, version = line.decode("latin-1").split()
            headers = {}
            while (line := reader.readline(65536)).strip():
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.strip().lower()] = value.strip()
            if "transfer-encoding" in headers:
                send(client, error_reply(411, "invalid_request_error", "the fake reads no chunked requests"), False)
                return
            if headers.get("expect", "").lower() == "100-continue":
                client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = reader.read(int(headers.get("content-length", "0")))
            wish = headers.get("connection", "").lower()
            keep_alive = wish == "keep-alive" or (version == "HTTP/1.1" and wish != "close")
            yield Request(method, target, headers, body, keep_alive)


def send(client: socket.socket, reply: Reply, keep_alive: bool) -> None:
    body = b"".join(reply.parts)
    length = "Transfer-Encoding: chunked" if reply.chunked else f"Content-Length: {len(body)}"
    connection = "keep-alive" if keep_alive else "close"
    head = f"HTTP/1.1 {reply.status} {REASONS[reply.status]}\r\nServer: llama.cpp\r\nContent-Type: {reply.kind}\r\n"
    start = f"{head}{length}\r\nConnection: {connection}\r\n\r\n".encode()
    if not reply.chunked:
        client.sendall(start + (body[: len(body) // 2] if reply.cut else body))
        return
    client.sendall(start)
    for part in reply.parts[: len(reply.parts) // 2] if reply.cut else reply.parts:
        client.sendall(b"%x\r\n%s\r\n" % (len(part), part))
    if not reply.cut:
        client.sendall(b"0\r\n\r\n")
