"""The control socket while a server is supervised: what it answers, and what cannot disturb the supervision."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio
from anyio import to_thread

from supervisor import Hooks, Restart, State, events, step, supervise
from supervisor.child import Child
from supervisor.control import client, folder
from supervisor.control.messages import Refusal, outcome_in
from supervisor.control.server import serve
from supervisor.control.subject import Subject
from supervisor.steps import Step
from support import Recorder, fake_profile, until_async

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An XDG_RUNTIME_DIR of the test's own."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


@asynccontextmanager
async def controlled(hooks: Hooks = Hooks(), **fields: Any) -> AsyncIterator[tuple[Path, Subject, Recorder]]:  # noqa: B008
    """A supervised fake server that is READY, with its control socket; stopped at the end."""
    seen = Recorder()
    profile = fake_profile(**fields)
    subject = Subject(profile, seen)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve, subject)
        watched = Hooks(observers=(seen, subject)) + hooks
        tasks.start_soon(partial(supervise, profile, watched, task_status=subject))
        path = Path(os.environ["XDG_RUNTIME_DIR"]) / "warmboot" / f"{os.getpid()}.sock"
        await until_async(lambda: subject.status.state == "ready")
        yield path, subject, seen
        tasks.cancel_scope.cancel()


async def ask(path: Path, operation: Any) -> dict[str, Any]:
    """A request from a thread, as from another process."""
    return await to_thread.run_sync(client.ask, path, operation)


async def raw(path: Path, line: bytes) -> dict[str, Any]:
    """The answer to some bytes."""

    def talk() -> dict[str, Any]:
        with folder.opened(path.parent) as descriptor, folder.connect(descriptor, path.name, wait=True) as connection:
            connection.sendall(line)
            connection.shutdown(socket.SHUT_WR)
            with connection.makefile() as answer:
                said: dict[str, Any] = json.loads(answer.read())
            return said

    return await to_thread.run_sync(talk)


def held(release: anyio.Event) -> Step:
    """A Step that waits."""

    async def wait(_: Child) -> None:
        await release.wait()

    return step("held", wait)


async def test_state_seal_and_resume() -> None:
    """The answers tell what runs and what was done; what is done already is said and is no failure."""

    async def nothing(_: Child) -> None:
        pass

    async with controlled(Hooks(sleep=(step("doze", nothing),), wake=(step("rise", nothing),))) as (
        path,
        subject,
        seen,
    ):
        (found,) = await to_thread.run_sync(client.running)
        assert (found.socket, found.supervisor_pid, found.status) == (path, os.getpid(), subject.status)
        assert found.status is not None
        ready = seen.one(events.ChildReady)
        assert (found.status.name, found.status.pid, found.status.url) == ("fake", ready.pid, ready.url)
        assert (found.status.state, found.status.since_unix_s) == ("ready", ready.unix_s)
        awake = outcome_in(await ask(path, "resume"))
        assert (awake.already, awake.steps) == (True, ())
        slept = outcome_in(await ask(path, "seal"))
        assert [(took.point, took.step) for took in slept.steps] == [("sleep", "doze")]
        assert (slept.already, slept.replaced, slept.status.state) == (False, False, "sealed")
        assert outcome_in(await ask(path, "seal")).already
        woken = outcome_in(await ask(path, "resume"))
        assert [(took.point, took.step) for took in woken.steps] == [("wake", "rise")]
        assert (woken.already, woken.replaced, woken.status.state) == (False, False, "ready")
        subject.notice("something")
        assert seen.one(events.Notice).elapsed_s >= seen.one(events.ChildResumed).elapsed_s
    assert not list(path.parent.parent.iterdir())


async def test_a_refused_seal_is_answered_in_the_errors_own_words() -> None:
    """The Step's reason and exit code reach the client, and the server serves on."""

    async def refuse(_: Child) -> None:
        raise RuntimeError("not today")

    async with controlled(Hooks(before_seal=(step("check", refuse),))) as (path, subject, _):
        with pytest.raises(Refusal, match=r"before_seal step 'check' failed after .*: not today") as refused:
            await ask(path, "seal")
        assert (refused.value.error, refused.value.exit_status) == ("StepFailed", 4)
        assert subject.status.state == "ready"


async def test_clients_that_leave_disturb_nothing(anyio_backend_name: str) -> None:
    """One asks for a seal and goes, some say nothing at all: the seal ends as any other, without a timer."""
    release = anyio.Event()
    async with controlled(Hooks(sleep=(held(release),))) as (path, subject, seen):
        with folder.opened(path.parent) as descriptor:
            silent = [folder.connect(descriptor, path.name) for _ in range(3)]
            gone = folder.connect(descriptor, path.name)
        gone.send(b'{"op": "seal"}\n')
        await until_async(lambda: subject.status.under_way == "seal")
        gone.close()
        with pytest.raises(Refusal, match="cannot resume while a seal is under way") as refused:
            await ask(path, "resume")
        assert refused.value.exit_status == 1
        release.set()
        await until_async(lambda: subject.status.state == "sealed" and subject.status.under_way is None)
        if anyio_backend_name == "trio":  # asyncio does not tell
            assert trio.lowlevel.current_statistics().seconds_to_next_deadline == math.inf
        silent.pop().close()
        assert outcome_in(await ask(path, "resume")).status.state == "ready"
        assert not seen.of(events.Notice)
    for connection in silent:
        connection.close()


async def test_a_stop_answers_who_waits() -> None:
    """The supervision ends while a seal is under way: the client hears that, in words."""
    async with anyio.create_task_group() as tasks:
        async with controlled(Hooks(sleep=(held(anyio.Event()),))) as (path, subject, _):
            said: list[str] = []

            async def wait() -> None:
                try:
                    await ask(path, "seal")
                except Refusal as refusal:
                    said.append(str(refusal))

            tasks.start_soon(wait)
            await until_async(lambda: subject.status.under_way == "seal")
        await until_async(lambda: said)
    assert said == ["cannot seal while being stopped: it needs a running server."]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (b"seal\n", "BadRequest"),
        (b'["seal"]', "BadRequest"),
        (b"[" * 4000, "BadRequest"),
        (b'{"op": "stop"}\n', "BadRequest"),
        (b'{"v": 2, "op": "state"}\n', "UnknownVersion"),
        (b"x" * 5000, "BadRequest"),
    ],
)
async def test_what_is_no_request_is_refused(line: bytes, error: str) -> None:
    """With an error's name and words, and nothing else happens."""
    subject = Subject(fake_profile(), Recorder())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve, subject)
        path = Path(os.environ["XDG_RUNTIME_DIR"]) / "warmboot" / f"{os.getpid()}.sock"
        await until_async(path.exists)
        said = await raw(path, line)
        assert (said["ok"], said["error"], said["exit_status"]) == (False, error, 2)
        before = await raw(path, b'{"op": "state"}')
        assert (before["state"], before["pid"], before["url"]) == ("starting", None, None)
        with pytest.raises(Refusal, match="cannot seal while starting: it needs a server that was ready"):
            await ask(path, "seal")
        tasks.cancel_scope.cancel()


async def test_too_many_silent_clients_leave_room_for_those_there() -> None:
    """Beyond 32 connections at once a client is told so; when one leaves there is room again."""
    subject = Subject(fake_profile(), Recorder())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve, subject)
        path = Path(os.environ["XDG_RUNTIME_DIR"]) / "warmboot" / f"{os.getpid()}.sock"
        await until_async(path.exists)
        silent = []
        with folder.opened(path.parent) as descriptor:
            for _ in range(32):
                silent.append(folder.connect(descriptor, path.name))
                await anyio.wait_all_tasks_blocked()
        with pytest.raises(Refusal, match="32 other clients are connected"):
            await ask(path, "state")
        for connection in silent:
            connection.close()
        await anyio.wait_all_tasks_blocked()
        assert (await ask(path, "state"))["state"] == "starting"
        tasks.cancel_scope.cancel()


@pytest.mark.root
async def test_a_stranger_is_refused(tmp_path: Path) -> None:
    """Another user's process that got through the folder all the same is refused by its uid."""
    subject = Subject(fake_profile(), Recorder())
    program = """
import os, socket, sys
os.fchdir(int(sys.argv[2]))
os.setgid(65534)
os.setuid(65534)
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(sys.argv[1])
    print(connection.recv(4096).decode())
"""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve, subject)
        path = tmp_path / "warmboot" / f"{os.getpid()}.sock"
        await until_async(path.exists)
        with folder.opened(path.parent) as descriptor:  # inherited: it leads past the folders above
            path.chmod(0o666)
            path.parent.chmod(0o711)
            argv = [sys.executable, "-c", program, path.name, str(descriptor)]
            run = partial(subprocess.run, check=True, capture_output=True, text=True, pass_fds=(descriptor,))
            done = await to_thread.run_sync(lambda: run(argv))
        assert json.loads(done.stdout)["detail"] == f"user 65534 may not control the servers of user {os.geteuid()}"
        path.parent.chmod(0o700)
        tasks.cancel_scope.cancel()


async def test_without_a_folder_the_server_runs_on(runtime: Path) -> None:
    """What prevents the socket is a notice with the reason, and nothing else is missing."""
    (runtime / "warmboot").symlink_to(runtime)
    seen = Recorder()
    subject = Subject(fake_profile(), seen)
    await serve(subject)
    assert "is a link or no folder" in seen.one(events.Notice).detail
    assert client.running() == ()


async def test_a_server_that_died_asleep_is_replaced_at_the_wake() -> None:
    """The wake is answered once the cold start serves, and says that it is another process."""
    async with controlled(restart=Restart(policy="on-resume", backoff_s=0.01)) as (path, subject, seen):
        before = outcome_in(await ask(path, "seal")).status.pid
        assert before is not None
        os.kill(before, 9)
        woken = outcome_in(await ask(path, "resume"))
        assert (woken.replaced, woken.status.state) == (True, "ready")
        assert woken.status.pid == subject.status.pid != before
        assert len(seen.of(events.ChildReady)) == 2
        assert State.FAILED in {event.enters for event in seen.events}


async def test_a_suspended_supervisor_is_found_and_does_not_answer(runtime: Path) -> None:
    """Somebody listens and says nothing: it is listed by the pid in the name of its socket, within the limit."""
    listening = folder.listening()
    try:
        (found,) = client.running(timeout_s=0.05)
        assert (found.status, str(found)) == (None, f"supervisor {os.getpid()} (does not answer)")
    finally:
        listening.close()
    assert not list(runtime.iterdir())
