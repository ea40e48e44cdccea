"""Sglang under the supervisor's lifecycle, with a fake that misbehaves as the real server does."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from fakes.sglang import KEY, SHORT, server_of
from hooks.auth import AuthCheck
from hooks.golden import Golden, GoldenMismatch
from hooks.http.chat import chat
from supervisor import Child, Hooks, Restart, State, Stop, Supervised, supervise
from supervisor import events as ev
from supervisor.engines.sglang import EngineRefused, MemorySaver
from supervisor.engines.sglang.private import ADMIN_KEY, path_in
from supervisor.errors import DiedBeforeReady, StepFailed, WorkerDied
from supervisor.profile import Profile
from supervisor.redact import Secret
from support import Do, Recorder, alive, is_in, until_async

pytestmark = pytest.mark.anyio

QUICK = Restart(policy="on-failure", backoff_s=0.01, jitter=0.0)


@asynccontextmanager
async def supervised(profile: Profile, hooks: Hooks) -> AsyncIterator[Supervised]:
    """Supervised until the end of the block; raises what ended it before."""
    try:
        async with anyio.create_task_group() as tasks:
            server: Supervised = await tasks.start(supervise, profile, hooks)
            yield server
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        (error,) = group.exceptions
        raise error from None


async def status(child: Child, path: str, **more: Any) -> int:
    async with child.client(timeout_s=10) as client:
        return (await client.get(path, **more)).status_code


def shown(path: str, pid: int) -> str:
    return Path(f"/proc/{pid}/{path}").read_text(encoding="utf-8", errors="replace")


async def test_the_keys_reach_the_server_alone() -> None:
    """The keys stand in a private file while it starts, and nowhere afterwards; strangers and clients are kept out."""
    server, profile = server_of()
    seen, private = Recorder(), path_in(profile.command)
    modes: list[int] = []

    def look(event: ev.Event) -> None:
        if isinstance(event, ev.ChildSpawned):
            modes.extend(path.stat().st_mode & 0o777 for path in (private, private.parent))

    umask = os.umask(0)
    try:
        async with supervised(profile, server.hooks() + Hooks(warmup=(AuthCheck(),), observers=(seen, look))) as handle:
            assert modes == [0o600, 0o700]
            assert not private.parent.exists()
            assert handle.pid
            assert KEY.reveal() not in shown("cmdline", handle.pid) + shown("environ", handle.pid)
            child, admin = handle.child, profile.env[ADMIN_KEY]
            assert isinstance(admin, Secret)
            as_admin = {"Authorization": f"Bearer {admin.reveal()}"}
            assert await status(child, "/hicache/storage-backend") == 401
            assert await status(child, "/hicache/storage-backend", headers=as_admin) == 200
    finally:
        os.umask(umask)
    lines = "\n".join(seen.lines())
    assert "'admin_api_key': " in lines  # the server prints its keys
    assert KEY.reveal() not in lines
    assert admin.reveal() not in lines


async def test_an_administration_that_is_open_to_clients_is_refused() -> None:
    """A server that took no key for its administration lets clients release its memory: it never becomes READY."""
    server, profile = server_of()
    path = path_in(profile.command)

    def forget_the_admin(_: Child) -> None:
        path.write_text(path.read_text(encoding="utf-8").replace("admin-", "no-"), encoding="utf-8")

    with pytest.raises(StepFailed, match="HTTP 400 instead of 401: a client may"):
        await supervise(profile, server.hooks() + Hooks(before_start=(Do(action=forget_the_admin, name="forget"),)))


async def test_a_file_of_ours_goes_before_the_keys(tmp_path: Path) -> None:
    """The user's YAML comes first in the private file, at its own indentation, then the keys."""
    config = tmp_path / "seed.yaml"
    config.write_text("  tool-call-parser: qwen\n  note: |\n    api-key", encoding="utf-8")
    server, profile = server_of()
    written: list[str] = []
    look = Do(action=lambda _: written.append(path_in(profile.command).read_text(encoding="utf-8")), name="look")
    hooks = replace(server, config=config).hooks()
    async with supervised(profile, Hooks(before_start=(*hooks.before_start, look), observers=hooks.observers)):
        pass
    lines = written[0].splitlines()
    assert lines[:3] == ["  tool-call-parser: qwen", "  note: |", "    api-key"]
    assert [line.split(":")[0] for line in lines[3:]] == ["  api-key", "  admin-api-key"]
    assert not path_in(profile.command).exists()


async def test_a_restart_finds_its_keys_again() -> None:
    """The private file is written anew before each start."""
    server, profile = server_of()
    seen = Recorder()
    async with supervised(replace(profile, restart=QUICK), server.hooks() + Hooks(observers=(seen,))) as handle:
        assert handle.pid
        os.kill(handle.pid, signal.SIGKILL)
        await until_async(lambda: len(seen.of(ev.ChildReady)) == 2)
        assert await status(handle.child, "/v1/models") == 200
        assert not path_in(profile.command).parent.exists()


async def test_no_file_stays_after_a_failed_start() -> None:
    """A server that dies before it is up leaves no keys behind."""
    server, profile = server_of()
    profile = replace(profile, command=("/bin/sh", "-c", "exit 3", *profile.command))
    with pytest.raises(DiedBeforeReady):
        await supervise(profile, server.hooks())
    assert not path_in(profile.command).parent.exists()


async def test_keys_of_a_killed_supervisor_go_at_the_next_start() -> None:
    """A file whose writer is gone is removed; one whose writer lives stays, and so does one that is being made."""
    server, profile = server_of()
    ours = path_in(profile.command)
    left, held, made = (ours.parent.with_name(f"{ours.parent.name}{end}") / ours.name for end in ("a", "b", "c"))
    for file in (left, held, made):
        file.parent.mkdir(mode=0o700)
        file.write_text("" if file is made else "api-key: sk-old", encoding="utf-8")
    try:
        with held.open(encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            async with supervised(profile, server.hooks()):
                assert (left.exists(), held.exists(), made.exists()) == (False, True, True)
        assert not left.parent.exists()
    finally:
        for file in (held, made):
            file.unlink()
            file.parent.rmdir()


async def test_a_folder_that_is_not_ours_alone_gets_no_keys() -> None:
    """Somebody else's folder of that name is not written to."""
    server, profile = server_of()
    folder = path_in(profile.command).parent
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    try:
        with pytest.raises(StepFailed, match="not a folder of ours alone"):
            await supervise(profile, server.hooks())
        assert list(folder.iterdir()) == []
    finally:
        folder.rmdir()


async def test_it_is_up_when_its_warmup_is_done_not_when_it_lists_its_models() -> None:
    """It listens and lists its models before its warmup; only then is it up, and no probe generates anything."""
    server, profile = server_of("--warmup-s", "0.4")
    seen = Recorder()
    async with supervised(profile, server.hooks() + Hooks(observers=(seen,))) as handle:
        assert any("ready to roll" in line for line in seen.lines())
        async with handle.child.client() as client:
            assert (await client.get("/metrics")).text.endswith(" 0.0\n")
            assert (await client.get("/health_generate")).status_code == 200
            assert (await client.get("/metrics")).text.endswith(" 0.0\n")
    assert seen.one(ev.ChildUp).probes > 1


async def test_a_stop_goes_to_the_leader() -> None:
    """Told alone, it ends its own processes and exits; with a stop for the group it takes their end for a crash."""
    seen = Recorder()
    server, profile = server_of()
    async with supervised(profile, server.hooks() + Hooks(observers=(seen,))):
        pass
    assert seen.one(ev.ChildExited).exit_code == 0
    assert not seen.one(ev.TeardownFinished).escalated
    seen = Recorder()
    async with supervised(replace(profile, stop=Stop(grace_s=10)), server.hooks() + Hooks(observers=(seen,))):
        pass
    assert seen.one(ev.ChildExited).signal == "SIGKILL"
    assert any("SIGQUIT received" in line for line in seen.lines())


@pytest.mark.parametrize("title", ["sglang::scheduler", "sglang::detokenizer"])
async def test_a_dead_worker_is_the_end_at_once(title: str) -> None:
    """The end of a process of its own is seen before the server has found out, and the error names it."""
    server, profile = server_of("--diagnostics-s", "60", stop=SHORT)
    with pytest.raises(WorkerDied, match=title):
        async with supervised(profile, server.hooks()) as handle:
            assert handle.pid
            (worker,) = [
                int(path.parent.name)
                for path in Path("/proc").glob("[0-9]*/stat")
                if f" {handle.pid} " in _read(path) and title in _read(path.with_name("cmdline"))
            ]
            os.kill(worker, signal.SIGKILL)
            await anyio.sleep_forever()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


async def test_golden_answers_need_no_flush() -> None:
    """Each golden question is computed anew; one that comes from the prefix cache rounds otherwise."""
    server, profile = server_of()
    golden = Golden()
    async with supervised(profile, server.hooks() + Hooks(before_seal=(golden.record,))) as handle:
        await handle.seal()
        await handle.resume()
        plain = replace(handle.child.profile.dialect, repeatable=lambda seed: {"seed": seed})
        child = replace(handle.child, profile=replace(handle.child.profile, dialect=plain))
        with pytest.raises(GoldenMismatch, match="does not repeat itself"):
            await Golden().record(child)


async def test_memory_is_released_and_comes_back() -> None:
    """Sealed, its memory is released and no request reaches it, whoever sends it; resumed, it answers as before."""
    server, profile = server_of()
    golden, answered = Golden(), anyio.Event()
    async with supervised(
        profile, server.hooks() + Hooks(before_seal=(golden.record,), after_resume=(golden.replay,))
    ) as handle:
        pid = handle.pid
        await handle.seal()
        child = handle.child
        assert await status(child, "/ready") == 503  # paused
        assert await status(child, "/health") == 200  # and probes by strangers do no harm
        assert await status(child, "/health_generate") == 200

        async def impatient() -> None:
            await chat(child, "Hi", 1, 20.0)
            answered.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(impatient)
            await until_async(lambda: _connections(child.port) > 0)
            assert not answered.is_set()
            await handle.resume()
        assert answered.is_set()
        assert (handle.pid, is_in(handle, State.READY)) == (pid, True)


def _connections(port: int) -> int:
    """Established connections to a port of this machine."""
    rows = [row.split() for row in _read(Path("/proc/net/tcp")).splitlines()[1:]]
    return sum(row[2].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


async def test_a_request_in_flight_refuses_the_release() -> None:
    """A release of an engine that is not idle would end it: it is refused, and the engine goes on generating."""
    server, profile = server_of("--generation-s", "3600", stop=SHORT)
    saver = MemorySaver()
    async with supervised(profile, server.hooks()) as handle:
        child = handle.child
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_ask_for_ever, child)
            async with child.client() as client:
                while (await client.get("/v1/loads")).json()["loads"][0]["num_running_reqs"] == 0:
                    await anyio.sleep(0.005)
            with pytest.raises(EngineRefused, match=r"POST /flush_cache.*HTTP 400"):
                await _impatient(saver).release(child)
            await saver.resume(child)
            assert await status(child, "/ready") == 200
            tasks.cancel_scope.cancel()


def _impatient(saver: MemorySaver) -> MemorySaver:
    """The same, and waits for no request."""
    return replace(saver, idle_s=0.05)


async def _ask_for_ever(child: Child) -> None:
    with anyio.CancelScope():
        await chat(child, "Hi", 1, 3600.0)


async def test_a_second_wake_is_harmless() -> None:
    """A second resume would end the engine: what was released comes back once, and waking it again does nothing."""
    server, profile = server_of()
    saver = MemorySaver()
    async with supervised(profile, server.hooks()) as handle:
        pid, child = handle.pid, handle.child
        await saver.resume(child)
        await saver.release(child)
        await saver.resume(child)
        await saver.resume(child)
        await saver.release(child)
        await saver.resume(child)
        await chat(child, "Hi", 1, 10.0)
        assert handle.pid == pid


@pytest.mark.parametrize("ask", [("/resume_memory_occupation",), ("/release_memory_occupation", "/v1/completions")])
async def test_the_routes_are_as_dangerous_as_they_are_said_to_be(ask: tuple[str, ...]) -> None:
    """What the Steps avoid does end the fake, as it ends SGLang: a second resume, and a generation while released."""
    server, profile = server_of(stop=SHORT)
    with pytest.raises(WorkerDied, match="sglang::scheduler"):
        async with supervised(profile, server.hooks()) as handle:
            as_admin = {"Authorization": f"Bearer {handle.child.env[ADMIN_KEY]}"}
            async with handle.child.client(timeout_s=10) as client:
                with suppress(httpx.HTTPError):  # the last of them gets no answer
                    for path in ask:
                        await client.post(path, json={}, headers=None if path.startswith("/v1") else as_admin)
            await anyio.sleep_forever()


async def test_weights_that_were_not_kept_are_found_by_the_golden_answer() -> None:
    """Without the backup in host memory the answers are garbage afterwards: the child is replaced by a cold start."""
    server, profile = server_of()
    bare = tuple(word for word in profile.command if word != "--enable-weights-cpu-backup")
    profile = replace(profile, command=bare, restart=Restart(policy="on-resume", backoff_s=0.01, jitter=0.0))
    golden, seen = Golden(), Recorder()
    hooks = Hooks(before_seal=(golden.record,), after_resume=(golden.replay,), observers=(seen,))
    async with supervised(profile, server.hooks() + hooks) as handle:
        pid = handle.pid
        await handle.seal()
        await handle.resume()
        assert handle.pid != pid
        assert not alive(pid)
    assert "golden text replay" in seen.one(ev.StepFailed).step


async def test_a_key_that_is_missing_is_said() -> None:
    """The Steps want the profile of the settings, which carries the key of the administration."""
    profile = server_of()[1]
    env = {name: value for name, value in profile.env.items() if name != ADMIN_KEY}
    child = Child(profile=replace(profile, env=env), port=1, pid=1, redact=lambda text: text)  # type: ignore[arg-type]
    with pytest.raises(EngineRefused, match="memory_saver=True"):
        await MemorySaver().release(child)
    with pytest.raises(httpx.ConnectError):
        await MemorySaver().release(replace(child, profile=profile))
