"""A server without a supervisor, and the wait until it answers, at the least cost to it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from bench.setting import Ports

_LOOK_S = 0.002
_ASK = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def until_healthy(port: int, server: subprocess.Popen[bytes] | None = None, *, limit_s: float = 120.0) -> float:
    """Waits for a 200, with a probe every 2 ms; returns when, on the monotonic clock."""
    ends = time.monotonic() + limit_s
    while time.monotonic() < ends:
        if server is not None and server.poll() is not None:
            raise RuntimeError(f"the server ended with {server.returncode}")
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as client:
                client.sendall(_ASK)
                if client.recv(64).split(b" ")[1:2] == [b"200"]:
                    return time.monotonic()
        except OSError:
            pass
        time.sleep(_LOOK_S)
    raise RuntimeError(f"not healthy after {limit_s:g} s")


def write_model() -> None:
    """Writes the embedded model, unless it is there: nobody measured does."""
    from supervisor.engines import embedded

    embedded.assemble(embedded.model_path())


@contextmanager
def bare_engine() -> Iterator[tuple[subprocess.Popen[bytes], float]]:
    """The embedded engine with its embedded model, started by nobody but us: (process, seconds until healthy)."""
    from supervisor.engines import embedded

    profile, port = embedded.profile(), Ports().next()
    argv = [argument.format(host="127.0.0.1", port=port) for argument in profile.command]
    env = os.environ | {name: str(value) for name, value in profile.env.items()}
    ready = re.compile((profile.health.ready_pattern or "").encode())
    began = time.monotonic()
    with subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as engine:
        try:
            # Its ready line costs it nothing; probes would take the processor from the load.
            assert engine.stderr
            for line in engine.stderr:
                if ready.search(line):
                    break
            drain = threading.Thread(target=engine.stderr.read)
            drain.start()
            yield engine, until_healthy(port, engine) - began
        finally:
            engine.kill()
            drain.join()
