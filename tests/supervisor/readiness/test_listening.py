"""Where the server listens, and who listens for it: wider than asked, and somebody else who is allowed to."""

from __future__ import annotations

import shlex
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import anyio
import httpx
import pytest

from supervisor import Child, Health, Hooks, Liveness, Profile, State, Timeouts, events, supervise
from supervisor.errors import PortTaken
from supervisor.linux import listeners, processes
from supervisor.readiness import watchdog
from supervisor.readiness.probe import NotUp, probe
from support import FAKE, Recorder, fake_profile, fate, free_port, is_in, until_async

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(not processes.AVAILABLE, reason="there is no /proc here")]

# Takes the place of docker-proxy: a process that descends from somebody else.
PROXY = (sys.executable, "-I", "-S", str(FAKE), "--port")


async def notices(*flags: str, host: str) -> list[str]:
    """What a start up to READY says besides its states."""
    seen = Recorder()
    async with anyio.create_task_group() as tasks:
        await tasks.start(supervise, fake_profile(*flags, host=host), Hooks(observers=(seen,)))
        tasks.cancel_scope.cancel()
    return [notice.detail for notice in seen.of(events.Notice)]


async def test_a_server_that_listens_wider_than_asked_is_a_notice() -> None:
    """A wildcard address in place of the one that was asked for is said once, with what to do."""
    (said,) = await notices("--host", "0.0.0.0", host="127.0.0.1")
    assert "(0.0.0.0, port " in said and "127.0.0.1 was asked for" in said and "{host} in its command" in said


async def test_the_wildcard_of_both_families_is_seen() -> None:
    """A dual-stack listener receives connections to an IPv4 address."""
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        assert listeners.wildcards(listener.getsockname()[1], "127.0.0.1") == ["::"]


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_a_server_that_listens_as_asked_is_no_notice(host: str) -> None:
    """Neither the address itself nor a wildcard that was asked for is worth a word."""
    assert await notices("--host", "{host}", host=host) == []


@asynccontextmanager
async def listening_once(there: Path, port: int) -> AsyncIterator[None]:
    """Another's server on the port, started as soon as a file is there."""

    async def listen() -> None:
        await until_async(there.exists)
        async with await anyio.open_process([*PROXY, str(port)], stdout=None, stderr=DEVNULL) as proxy:
            try:
                await anyio.sleep_forever()
            finally:
                proxy.kill()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(listen)
        yield
        tasks.cancel_scope.cancel()


def silent(port: int, there: Path, **fields: Any) -> Profile:
    """A child that never listens, and creates a file when it runs."""
    command = ("sh", "-c", f"touch {shlex.quote(str(there))}; exec sleep 600")
    return fake_profile(command=command, port=port, timeouts=Timeouts(start_s=60), **fields)


async def test_a_foreign_listener_is_refused_with_the_option_that_allows_it(tmp_path: Path) -> None:
    """Somebody who began to listen after the child may be its proxy, and the error says how to allow that."""
    port, there = free_port(), tmp_path / "there"
    async with listening_once(there, port):
        error, _ = await fate(silent(port, there))
    assert isinstance(error, PortTaken) and "--allow-foreign-listener" in str(error)


async def test_an_allowed_foreign_listener_is_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `allow_foreign_listener` the child is ready behind another process, and the watchdog leaves it alone."""
    port, there = free_port(), tmp_path / "there"
    checks: list[None] = []

    async def counted(client: httpx.AsyncClient, child: Child) -> NotUp | None:
        checks.append(None)
        return await probe(client, child)

    monkeypatch.setattr(watchdog, "probe", counted)
    liveness = Liveness(period_s=0.01, misses=1)
    profile = silent(port, there, health=Health(allow_foreign_listener=True), liveness=liveness)
    async with listening_once(there, port), anyio.create_task_group() as tasks:
        server = await tasks.start(supervise, profile)
        await until_async(lambda: len(checks) > 20)  # twice as many as between two looks at who listens
        assert is_in(server, State.READY)
        tasks.cancel_scope.cancel()
