"""A process that `Profile.vital` names is watched: its end is the end of the child, whatever the front does."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from supervisor import Hooks, Profile, Restart, State, Stop, Supervised, Timeouts, supervise
from supervisor import events as ev
from supervisor.errors import ChildCrashed, DiedBeforeReady, SupervisorError, WorkerDied, WorkerDiedBeforeReady
from supervisor.linux import processes
from supervisor.process.vital import VitalProcesses
from support import TESTS, Recorder, alive, fate, is_in, until_async

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not processes.AVAILABLE, reason="there is no /proc here"),
]

RANK = r"--rank \d+"


def fronted(folder: Path, *flags: str, **fields: Any) -> Profile:
    """A profile of the server of two processes, whose worker's number comes into a file."""
    server = str(TESTS / "fakes" / "fronted_server.py")
    defaults: dict[str, Any] = {
        "name": "fronted",
        "command": (
            *(sys.executable, "-I", "-S", server, "--port", "{port}"),
            *("--worker-file", str(folder / "worker"), *flags),
        ),
        "vital": (RANK,),
        "timeouts": Timeouts(start_s=30, stall_s=30, probe_s=5, step_s=20, resume_s=10),
        "stop": Stop(grace_s=5, drain_s=2),
    }
    return Profile(**(defaults | fields))


async def worker_of(folder: Path) -> int:
    """The worker's number, as soon as it runs."""
    await until_async((folder / "worker").exists, "the worker runs")
    return int((folder / "worker").read_text())


async def fate_after(profile: Profile, act: Any) -> tuple[SupervisorError, Recorder]:
    """Supervises, does something at READY, and returns the error that follows."""
    seen = Recorder()
    errors: list[SupervisorError] = []

    async def run(*, task_status: anyio.abc.TaskStatus[Supervised]) -> None:
        try:
            await supervise(profile, Hooks(observers=(seen,)), task_status=task_status)
        except SupervisorError as error:
            errors.append(error)

    async with anyio.create_task_group() as tasks:
        server = await tasks.start(run)
        await act(server)
    return errors[0], seen


@pytest.mark.parametrize(
    ("flags", "vital"), [((), (RANK,)), (("--title", "WORK::Core"), ("nothing", r"^WORK::Co"))], ids=["command", "name"]
)
async def test_a_dead_worker_ends_the_life_while_its_front_lives(
    tmp_path: Path, flags: tuple[str, ...], vital: tuple[str, ...]
) -> None:
    """After READY: the error names the worker and how it ended, though the front would answer for another minute."""

    async def kill(_: Supervised) -> None:
        os.kill(await worker_of(tmp_path), signal.SIGKILL)

    error, seen = await fate_after(fronted(tmp_path, *flags, vital=vital), kill)
    assert isinstance(error, WorkerDied)
    assert error.worker_pid == int((tmp_path / "worker").read_text())
    assert error.worker.startswith("WORK::Core: " if flags else "--rank 0: ")
    assert error.signal in ("SIGKILL", None)  # None: the front took its status first
    assert seen.one(ev.Stopping).reason == "WorkerDied"
    assert not alive(seen.one(ev.ChildReady).pid)


@pytest.mark.parametrize("seen_first", ["the worker's end", "the front's exit"])
async def test_the_clean_exit_of_the_front_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen_first: str
) -> None:
    """The front exits with code 0 as soon as its worker has died: an error, which names the worker all the same."""
    if seen_first == "the front's exit":

        async def blind(*_: object) -> None:
            await anyio.sleep_forever()

        monkeypatch.setattr(VitalProcesses, "until_one_ends", blind)

    async def kill(_: Supervised) -> None:
        os.kill(await worker_of(tmp_path), signal.SIGKILL)

    error, _ = await fate_after(fronted(tmp_path, "--linger-s", "0"), kill)
    assert isinstance(error, WorkerDied)


def is_watched(pid: int) -> bool:
    """Whether this process holds a pidfd of it."""
    return any(f"\nPid:\t{pid}\n" in read(path) for path in Path("/proc/self/fdinfo").iterdir())


def read(path: Path) -> str:
    """A file's text; nothing where it is gone."""
    try:
        return path.read_text()
    except OSError:
        return ""


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="there is no pidfd here")
async def test_a_worker_that_dies_while_loading_ends_the_load(tmp_path: Path) -> None:
    """Before READY: not the start timeout, not the front's exit, but the worker's end decides."""

    async def kill_once_watched() -> None:
        pid = await worker_of(tmp_path)
        await until_async(lambda: is_watched(pid), "the worker is found")
        os.kill(pid, signal.SIGSEGV)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(kill_once_watched)
        error, _ = await fate(fronted(tmp_path, "--never-ready"))
    assert isinstance(error, WorkerDiedBeforeReady)
    assert isinstance(error, DiedBeforeReady)
    assert error.during == "loading"
    assert error.signal in ("SIGSEGV", None)


async def test_a_dead_worker_is_replaced_with_its_front(tmp_path: Path) -> None:
    """The restart policy applies: a fresh front with a fresh worker serves."""
    seen = Recorder()
    profile = fronted(tmp_path, restart=Restart(policy="on-failure", backoff_s=0.01, jitter=0.0))
    async with anyio.create_task_group() as tasks:
        await tasks.start(supervise, profile, Hooks(observers=(seen,)))
        first = await worker_of(tmp_path)
        os.kill(first, signal.SIGKILL)
        await until_async(lambda: len(seen.of(ev.ChildReady)) == 2, "a second READY")
        assert await worker_of(tmp_path) != first
        tasks.cancel_scope.cancel()
    assert [event.error for event in seen.of(ev.Failed)] == ["WorkerDied"]


async def test_a_worker_that_dies_while_sealed_is_seen_at_the_resume(tmp_path: Path) -> None:
    """While sealed nothing happens, as with the child itself; the resume finds the worker dead and says so."""

    async def seal_kill_resume(server: Supervised) -> None:
        await server.seal()
        pid = await worker_of(tmp_path)
        os.kill(pid, signal.SIGKILL)
        await until_async(lambda: not alive(pid), "the worker is dead")
        assert is_in(server, State.SEALED)
        with pytest.raises(WorkerDied):
            await server.resume()

    error, seen = await fate_after(fronted(tmp_path), seal_kill_resume)
    assert isinstance(error, WorkerDied)
    assert not seen.of(ev.ChildResumed)


async def test_a_fork_at_work_is_not_vital(tmp_path: Path) -> None:
    """A process with its parent's command line and name is a helper, or about to be another program: it may end."""

    async def wait(_: Supervised) -> None:
        await until_async((tmp_path / "worker.helper").exists, "the helper has ended")
        os.kill(await worker_of(tmp_path), signal.SIGKILL)

    error, _ = await fate_after(fronted(tmp_path, "--helpers"), wait)
    assert isinstance(error, WorkerDied)
    assert error.worker_pid == int((tmp_path / "worker").read_text())


async def test_without_patterns_nothing_is_watched(tmp_path: Path) -> None:
    """The default costs nothing: no look at /proc, no descriptor; the front's end counts, as ever."""

    def never(*_: object, **__: object) -> None:
        raise AssertionError("made")

    async def kill(_: Supervised) -> None:
        os.kill(await worker_of(tmp_path), signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VitalProcesses, "__init__", never)
        error, _ = await fate_after(fronted(tmp_path, "--linger-s", "0", vital=()), kill)
    assert type(error) is ChildCrashed
    assert error.exit_code == 0


async def test_without_pidfd_the_end_is_seen_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gVisor and kernels before 5.3 have none: there /proc is asked."""
    monkeypatch.delattr(os, "pidfd_open", raising=False)

    async def kill(_: Supervised) -> None:
        os.kill(await worker_of(tmp_path), signal.SIGKILL)

    error, _ = await fate_after(fronted(tmp_path), kill)
    assert isinstance(error, WorkerDied)
