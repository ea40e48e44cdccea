"""Servers whose seal is guarded by the snapshot contract, and what its tests do with them."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from hooks.contract import Finding, SnapshotContract
from supervisor import Hooks, State, Supervised, supervise
from supervisor.errors import StepFailed
from supervisor.linux.files import descriptors, maps
from supervisor.profile import Profile
from support import FAKE, fake_profile, is_in

SERVER = (sys.executable, "-I", "-S", str(FAKE), "--port", "{port}")

# A server in few lines, after what a test puts before it.
HTTP = """
import socket, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        found = self.path == "/health"
        self.send_response(200 if found else 404); self.send_header("Content-Length", "0"); self.end_headers()
    def log_message(self, *_): pass
class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6 if ":" in sys.argv[2] else socket.AF_INET
Server((sys.argv[2], int(sys.argv[1])), Answer).serve_forever()
"""


def http(before: str = "") -> tuple[str, ...]:
    """Its command."""
    return (sys.executable, "-c", before + HTTP, "{port}", "{host}")


def profile(*flags: str, **fields: Any) -> Profile:
    """The fake with a clean environment, whatever this machine's holds."""
    return fake_profile(*flags, **({"inherit_env": ("PATH", "LANG")} | fields))


class Findings(list[Finding]):
    """The findings of the last run."""

    def __call__(self, findings: tuple[Finding, ...]) -> None:
        self[:] = findings


@asynccontextmanager
async def serving(what: Profile, **settings: Any) -> AsyncIterator[tuple[Supervised, Findings]]:
    """A READY server whose seal is guarded by the contract."""
    seen = Findings()
    step = SnapshotContract(on_findings=seen, **settings)
    async with anyio.create_task_group() as tasks:
        server = await tasks.start(supervise, what, Hooks(before_seal=(step,)))
        yield server, seen
        tasks.cancel_scope.cancel()


async def refused(server: Supervised, seen: Findings, check: str) -> Finding:
    """The only finding of a seal that is refused for it; the server is still READY."""
    with pytest.raises(StepFailed) as caught:
        await server.seal()
    assert (caught.value.point, caught.value.step) == ("before_seal", "contract")
    assert is_in(server, State.READY)
    (finding,) = seen
    assert (finding.check, finding.severity) == (check, "error")
    # The message alone is enough to act upon.
    for part in (check, f"pid {finding.pid}", finding.where, finding.fix):
        assert part in str(caught.value)
    return finding


async def sealed(server: Supervised, seen: Findings) -> None:
    """Seals, with nothing found."""
    await server.seal()
    assert is_in(server, State.SEALED)
    assert seen == []


async def until_let_go(path: Path, pid: int | None, *names: Path) -> None:
    """Tells the fake to let go, and waits until it has."""
    path.touch()
    assert pid
    held = {str(name) for name in names}
    with anyio.fail_after(20):
        while held & {d.target.removesuffix(" (deleted)") for d in descriptors(pid) or ()} or held & {
            line.path.removesuffix(" (deleted)") for line in maps(pid) or ()
        }:
            await anyio.sleep(0.005)
