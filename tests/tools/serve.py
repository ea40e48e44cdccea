"""Servers for tests of Steps: the fake llama-server as a process, and one that answers with the bytes it is given."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from supervisor.child import Child
from supervisor.engines.llama_cpp import LLAMA_CPP
from supervisor.profile import Health, Profile, Timeouts
from supervisor.redact import Redactor, Secret

KEY = "sk-made-up-for-tests"
FAKE = Path(__file__).resolve().parent.parent / "fakes" / "fake_server.py"


def child_at(
    port: int, *, key: str | None = KEY, open_access: bool = False, step_s: float = 20.0, pid: int | None = None
) -> Child:
    """A Child of a profile that knows `key`, on a port of this host; nothing is started."""
    profile = Profile(
        name="fake",
        command=(sys.executable, str(FAKE), "--port", "{port}"),
        api_key=Secret(key) if key else None,
        open_access=open_access,
        health=Health(model_id="fake-model"),
        timeouts=Timeouts(step_s=step_s),
        dialect=LLAMA_CPP,
    )
    return Child(profile=profile, port=port, pid=pid, redact=Redactor(profile.secrets))


@contextmanager
def running_fake(
    *flags: str, key: str | None = KEY, open_access: bool = False, step_s: float = 20.0, server_key: str | None = KEY
) -> Iterator[Child]:
    """The fake llama-server with fault flags, once it says that it listens; killed at the end.

    Args:
        flags: see the fake's own docstring.
        key, open_access, step_s: of the Child's profile.
        server_key: what the server is started with; None: no key.
    """
    argv = [sys.executable, str(FAKE), "--port", "0", *(("--api-key", server_key) if server_key else ()), *flags]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            port = _port_of(process.stderr)
            process.stderr.close()  # nobody drains it from here on; the fake goes on without
            yield child_at(port, key=key, open_access=open_access, step_s=step_s, pid=process.pid)
        finally:
            process.kill()


def _port_of(log: Iterator[str]) -> int:
    """The port, from the line that says that the server is ready; the end of the log means that it died."""
    seen = []
    for line in log:
        seen.append(line)
        if match := re.search(r"server is listening on http://[^ ]*:(\d+)", line):
            return int(match[1])
    raise AssertionError("the fake died: " + "".join(seen))


@contextmanager
def running_raw(answer: Callable[[str], bytes | Iterator[bytes]], *, step_s: float = 20.0) -> Iterator[Child]:
    """A server that closes each connection after what `answer(request's head)` gives: for what no server should do."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_serve, args=(listener, answer), daemon=True)
        thread.start()
        try:
            yield child_at(listener.getsockname()[1], step_s=step_s)
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _serve(listener: socket.socket, answer: Callable[[str], bytes | Iterator[bytes]]) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        with client:
            try:
                reply = answer(_read_request(client))
                for part in (reply,) if isinstance(reply, bytes) else reply:
                    client.sendall(part)
                client.shutdown(socket.SHUT_WR)
                while client.recv(65536):
                    pass
            except OSError:
                pass  # the client went away


def _read_request(client: socket.socket) -> str:
    """The head of a request, once its body has been read as well: closing over unread bytes would reset."""

    def more() -> bytes:
        if data := client.recv(65536):
            return data
        raise ConnectionError("the client went away")

    data = b""
    while b"\r\n\r\n" not in data:
        data += more()
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: *(\d+)", head)
    missing = int(length[1]) - len(body) if length else 0
    while missing > 0:
        missing -= len(more())
    return head.decode("latin-1")
