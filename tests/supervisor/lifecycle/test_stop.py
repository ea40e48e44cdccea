"""The end of a child: grace, KILL, drain, and all that descends from it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Literal

import anyio
import httpx
import pytest

from supervisor import (
    Hooks,
    Stop,
    supervise,
)
from supervisor import events as ev
from supervisor.errors import (
    DiedBeforeReady,
)
from supervisor.lifecycle.handle import Supervised
from support import FAKE, Recorder, alive, fake_profile, fate, until_async

pytestmark = pytest.mark.anyio


async def test_a_server_that_ignores_term_is_killed() -> None:
    """After the grace period the group is killed, and the report says so."""
    seen = Recorder()
    async with anyio.create_task_group() as tasks:
        profile = fake_profile("--ignore-sigterm", stop=Stop(grace_s=0.2, drain_s=1))
        await tasks.start(supervise, profile, Hooks(observers=(seen,)))
        tasks.cancel_scope.cancel()
    result = seen.one(ev.TeardownFinished)
    assert result.escalated
    assert result.took_s >= 0.2
    assert seen.one(ev.ChildExited).signal == "SIGKILL"


async def test_a_slow_stop_is_waited_for() -> None:
    """A server that needs a moment gets it, within the grace period."""
    seen = Recorder()
    async with anyio.create_task_group() as tasks:
        await tasks.start(supervise, fake_profile("--slow-sigterm", "0.3"), Hooks(observers=(seen,)))
        tasks.cancel_scope.cancel()
    assert not seen.one(ev.TeardownFinished).escalated
    assert seen.one(ev.ChildExited).exit_code == 0


async def test_a_stopped_server_gets_its_grace_too() -> None:
    """A server that SIGSTOP has stopped cannot take TERM: it is woken, and exits by itself."""
    seen = Recorder()
    async with anyio.create_task_group() as tasks:
        server: Supervised = await tasks.start(supervise, fake_profile(stop=Stop(grace_s=20)), Hooks(observers=(seen,)))
        assert server.pid
        os.kill(server.pid, signal.SIGSTOP)
        tasks.cancel_scope.cancel()
    assert not seen.one(ev.TeardownFinished).escalated
    assert seen.one(ev.ChildExited).exit_code == 0


async def test_a_grandchild_with_the_pipe_delays_nothing_beyond_the_drain(tmp_path: Path) -> None:
    """A grandchild that holds the pipes and ignores TERM is killed with the group when `drain_s` is over."""
    seen = Recorder()
    pid_file = tmp_path / "pid"
    profile = fake_profile("--grandchild", "--grandchild-pid-file", str(pid_file), stop=Stop(grace_s=30, drain_s=0.2))
    with anyio.fail_after(15):
        async with anyio.create_task_group() as tasks:
            await tasks.start(supervise, profile, Hooks(observers=(seen,)))
            grandchild = int(pid_file.read_text())
            assert alive(grandchild)
            tasks.cancel_scope.cancel()
    assert 0.2 <= seen.one(ev.TeardownFinished).took_s < 10
    await until_async(lambda: not alive(grandchild))


async def test_a_wrapper_is_stopped_with_its_server() -> None:
    """TERM reaches the server behind a shell wrapper, which may finish what it does."""
    inner = f"{sys.executable} -I -S {FAKE} --port {{port}} --slow-sigterm 0.2"
    seen = Recorder()
    profile = fake_profile(command=("/bin/sh", "-c", f"{inner} & wait"))
    async with anyio.create_task_group() as tasks:
        server: Supervised = await tasks.start(supervise, profile, Hooks(observers=(seen,)))
        tasks.cancel_scope.cancel()
    assert seen.one(ev.TeardownFinished).drained
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health", trust_env=False)


@pytest.mark.parametrize("tail", ["& wait", "> /dev/null 2>&1; true"], ids=["holds the pipes", "holds nothing"])
async def test_the_grace_is_the_servers_not_its_wrappers(tail: str) -> None:
    """A server behind a shell that dies of TERM gets the whole grace period, not only the drain's."""
    inner = f"{sys.executable} -I -S {FAKE} --port {{port}} --slow-sigterm 0.5"
    seen = Recorder()
    profile = fake_profile(command=("/bin/sh", "-c", f"{inner} {tail}"), stop=Stop(grace_s=20, drain_s=0.1))
    async with anyio.create_task_group() as tasks:
        await tasks.start(supervise, profile, Hooks(observers=(seen,)))
        tasks.cancel_scope.cancel()
    result = seen.one(ev.TeardownFinished)
    assert not result.escalated
    assert result.took_s >= 0.5


@pytest.mark.parametrize(("to", "told"), [("group", True), ("leader", False)])
async def test_whoever_the_stop_is_for_is_told(tmp_path: Path, to: Literal["group", "leader"], told: bool) -> None:
    """A worker beside the server is told to end only if the stop is for the group; it outlives no stop either way."""
    mark, ready = tmp_path / "told", tmp_path / "pid"
    worker = f"trap 'echo > {mark}; exit' TERM; echo $$ > {ready}; while :; do sleep 0.02; done"
    command = ("/bin/sh", "-c", f'/bin/sh -c "$0" & exec {sys.executable} -I -S {FAKE} --port {{port}}', worker)
    stop = Stop(to=to, drain_s=2 if told else 0.5)  # a worker that is not told holds the pipes until it is killed
    seen = Recorder()
    async with anyio.create_task_group() as tasks:
        await tasks.start(supervise, fake_profile(command=command, stop=stop), Hooks(observers=(seen,)))
        await until_async(lambda: ready.exists() and ready.read_text())
        pid = int(ready.read_text())
        tasks.cancel_scope.cancel()
    assert seen.one(ev.ChildExited).exit_code == 0
    assert mark.exists() is told
    assert not alive(pid)


async def test_a_server_in_a_group_of_its_own_is_stopped() -> None:
    """A wrapper with job control puts the server into another process group; it does not survive the stop."""
    inner = f"{sys.executable} -I -S {FAKE} --port {{port}}"
    profile = fake_profile(command=("/bin/bash", "-c", f"set -m; {inner} & wait"))
    async with anyio.create_task_group() as tasks:
        server: Supervised = await tasks.start(supervise, profile)
        tasks.cancel_scope.cancel()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health", trust_env=False)


async def test_the_exit_of_a_leader_takes_its_group_along(tmp_path: Path) -> None:
    """When the child dies, a grandchild that holds port or pipes does not survive it, and does not delay the report."""
    pid_file = tmp_path / "pid"
    flags = ("--grandchild", "--grandchild-pid-file", str(pid_file), "--die-while-loading")
    error, seen = await fate(fake_profile(*flags, stop=Stop(grace_s=30, drain_s=30)))
    assert isinstance(error, DiedBeforeReady)
    assert seen.one(ev.TeardownFinished).took_s < 10
    assert not alive(int(pid_file.read_text()))
