"""Whose server answers, what of its words is told, and how the watchdog judges silence."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from supervisor import Health, Hooks, Liveness, Secret, Timeouts, supervise
from supervisor import events as ev
from supervisor.errors import ChildUnresponsive, ProfileError, ReadinessTimeout, SupervisorError
from supervisor.linux import listeners, processes
from supervisor.process.spawn import accepts, free_port
from supervisor.redact import Redactor
from support import FAKE, ROOT, Recorder, fake_profile, until_async

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(not processes.AVAILABLE, reason="there is no /proc here")]

SERVER = (sys.executable, "-I", "-S", str(FAKE), "--port", "{port}")
# Spends 90 % of a core in the only thread once it has answered a few probes.
BUSY = """
import sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
class Answer(BaseHTTPRequestHandler):
    seen = 0
    def do_GET(self):
        Answer.seen += 1
        end = time.monotonic() + float(sys.argv[2]) * (Answer.seen == 3)
        while time.monotonic() < end:
            pass
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def log_message(self, *_): pass
HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


async def until_ready(**fields: Any) -> Recorder:
    """Supervises until READY, then stops; returns the events."""
    seen = Recorder()
    async with anyio.create_task_group() as tasks:
        await tasks.start(supervise, fake_profile(**fields), Hooks(observers=(seen,)))
        tasks.cancel_scope.cancel()
    return seen


async def fate(*flags: str, **fields: Any) -> SupervisorError:
    """The error with which supervision ends by itself."""
    with pytest.raises(SupervisorError) as caught:
        await supervise(fake_profile(*flags, **fields))
    return caught.value


@pytest.mark.root  # or there is no process of another user
def test_a_listener_that_we_cannot_see_is_not_ours() -> None:
    """An unprivileged user's child that never listens is not ready because root's server answers on its port."""
    port = free_port("127.0.0.1")
    script = f"""
import anyio, anyio._backends._asyncio, encodings.idna, httpx, httpcore, os
import supervisor.lifecycle.run, supervisor.readiness.identity, supervisor.logs.pump
httpx.AsyncClient(trust_env=False)  # all imports happen before: the interpreter may be in root's home
os.setgid(65534); os.setuid(65534)
from supervisor import Profile, Hooks, supervise
from supervisor.errors import PortTaken
def tell(event):
    if event.name in ("child.spawned", "child.ready"): print(event.name, flush=True)
try:
    anyio.run(supervise, Profile(name="x", command=("sleep", "100"), port={port}, env={{}}), Hooks(observers=(tell,)))
except PortTaken as error:
    print("taken by", error.pid, flush=True)
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout and run.stdout.readline() == "child.spawned\n"
        with subprocess.Popen([*SERVER[:-1], str(port)], stderr=subprocess.DEVNULL) as squatter:
            told = run.stdout.read()
            squatter.kill()
    assert told == "taken by None\n"


async def test_a_child_that_may_not_be_looked_at_is_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child whose descriptors are unreadable is known by the user to whom the listening socket belongs."""
    monkeypatch.setattr(listeners, "_descriptors", lambda _: None)
    assert "child.ready" in (await until_ready()).names


async def test_a_server_that_left_the_session_is_ours() -> None:
    """A descendant behind setsid(1) is a member: the child is ready, on the first port."""
    seen = await until_ready(command=("setsid", "-w", *SERVER))
    assert len(seen.of(ev.ChildSpawned)) == 1


@pytest.mark.parametrize("other", ["127.0.0.2", "::1"])
async def test_a_listener_on_another_address_is_nobodys_business(other: str) -> None:
    """The same port of another address takes no connection of ours."""
    port = free_port("127.0.0.1")
    with closing(socket.create_server((other, port), family=socket.AF_INET6 if ":" in other else socket.AF_INET)):
        assert "child.ready" in (await until_ready(port=port)).names


def test_a_command_line_is_masked_before_it_is_cut() -> None:
    """A key that stands where a long command line is cut does not show its first half."""
    key = "made-up-key-" + "k" * 40
    for width in range(60, 120):
        owner = listeners.Owner(pid=1, argv=("x" * width, key), mine=False)
        assert "made" not in str(owner.command(Redactor((Secret(key),))))


def test_a_title_is_shown_without_the_room_behind_it() -> None:
    """A process that set a title of its own fills the rest of its old command line with NULs: they are not shown."""
    owner = listeners.Owner(pid=1, argv=("worker", *("",) * 200), mine=False)
    assert str(owner.command(Redactor(()))) == "worker"


async def test_a_body_is_masked_before_it_is_judged() -> None:
    """A health body that holds the key where the judgement cuts it leaks nothing."""
    key = Secret("made-up-key-" + "k" * 40)
    body = 'b"x" * 180 + b" made-up-key-" + b"k" * 40'
    program = BUSY.replace("200", "503").replace('"Content-Length", "0"', '"Content-Length", "233"')
    program = program.replace("self.end_headers()", f"self.end_headers(); self.wfile.write({body})")
    command = (sys.executable, "-c", program, "{port}", "0")
    error = await fate(command=command, api_key=key, timeouts=Timeouts(start_s=2))
    assert isinstance(error, ReadinessTimeout)
    assert "xxx" in error.detail and "made" not in error.detail


async def test_a_judgement_that_raises_is_a_failed_probe() -> None:
    """A user's `accept` that raises makes no server ready and no group of exceptions, and its words are told."""

    def accept(status: int, body: str) -> str | None:
        raise LookupError(f"no such field in {status} {body[:0]}")

    error = await fate(health=Health(accept=accept), timeouts=Timeouts(start_s=0.7))
    assert isinstance(error, ReadinessTimeout)
    assert "LookupError: no such field" in error.detail


@pytest.mark.parametrize("host", ["nosuch.invalid", "203.0.113.7", "[::1]", "a" * 70])
async def test_a_host_that_is_not_here_is_a_wrong_setting(host: str) -> None:
    """A host on which nothing can listen here is told as such; nobody accepts connections there either."""
    with pytest.raises(ProfileError, match="address of this machine"):
        free_port(host)
    if len(host) == 70:
        assert not await accepts(host, 1)


async def test_a_server_that_works_is_not_killed(tmp_path: Path) -> None:
    """A single-threaded server that answers no probe while it computes is left alone, for ten times `misses` checks."""
    begin = tmp_path / "begin"
    # Computes once, from the first request after the file is there, so that no slow start can come in between.
    program = BUSY.replace("import sys, time", "import os, sys, time").replace(
        "(Answer.seen == 3)", "(os.path.exists(sys.argv[3]) and not os.remove(sys.argv[3]))"
    )
    program = program.replace("self.send_response", "print('answers', Answer.seen, flush=True); self.send_response")
    profile = fake_profile(
        command=(sys.executable, "-c", program, "{port}", "2", str(begin)),
        liveness=Liveness(period_s=0.05, misses=2),
        timeouts=Timeouts(start_s=30, probe_s=0.2),
    )
    seen = Recorder()
    async with anyio.create_task_group() as tasks:
        await tasks.start(supervise, profile, Hooks(observers=(seen,)))
        begin.touch()
        await until_async(lambda: not begin.exists(), "it computes")
        answers = len(seen.lines())
        await until_async(lambda: len(seen.lines()) > answers + 2, "it answers again")
        tasks.cancel_scope.cancel()

    def begin_now(event: ev.Event) -> None:
        if isinstance(event, ev.ChildReady):
            begin.touch()

    for_ever = replace(profile, command=(*profile.command[:-2], "1000", str(begin)))
    with anyio.fail_after(60), pytest.raises(ChildUnresponsive):
        await supervise(for_ever, Hooks(observers=(begin_now,)))


async def test_a_twin_on_the_port_is_noticed_after_ready() -> None:
    """A stranger that joins the child's port later gets a part of its connections: the watchdog says who it is."""
    program = BUSY.replace("HTTPServer((", "HTTPServer.allow_reuse_port = True\nHTTPServer((")
    program = "import socket\n" + program.replace(
        "HTTPServer.allow_reuse_port = True\nHTTPServer((",
        "class S(HTTPServer):\n    def server_bind(self):\n"
        "        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1); super().server_bind()\nS((",
    )
    twins: list[subprocess.Popen[bytes]] = []

    def observe(event: ev.Event) -> None:
        if isinstance(event, ev.ChildReady):
            port = event.url.rpartition(":")[2]
            twins.append(subprocess.Popen([sys.executable, "-c", program, port, "0"]))

    command = (sys.executable, "-c", program, "{port}", "0")
    profile = fake_profile(command=command, liveness=Liveness(period_s=0.05, misses=2))
    try:
        with anyio.fail_after(30), pytest.raises(ChildUnresponsive) as caught:
            await supervise(profile, Hooks(observers=(observe,)))
    finally:
        for twin in twins:
            with suppress(ProcessLookupError):
                twin.send_signal(signal.SIGKILL)
            twin.wait()
    assert f"pid {twins[0].pid}" in caught.value.detail


async def test_a_connect_that_nobody_answers_does_not_block_the_loop() -> None:
    """While the look whether the port is taken waits for an answer, everything else goes on."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=0)) as full:
        address = full.getsockname()
        fillers = [socket.socket() for _ in range(4)]  # a full queue answers no connect at all
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(address)
        went_on = anyio.Event()
        try:
            async with anyio.create_task_group() as tasks:

                async def look() -> None:
                    await accepts(*address, timeout_s=60)
                    raise AssertionError("the queue is full")

                tasks.start_soon(look)
                await anyio.wait_all_tasks_blocked()
                went_on.set()
                tasks.cancel_scope.cancel()
        finally:
            for filler in fillers:
                filler.close()
        assert went_on.is_set()
        assert not await accepts("127.0.0.1", free_port("127.0.0.1"))
