"""A supervised server whose weights lie in GPU memory, on a driver without a GPU: asleep, awake, damaged, healed."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from fakes.cuda.build import Built, build_once
from hooks.golden import Golden
from hooks.sleep import GpuMemory
from hooks.sleep.folder import VARIABLE, sockets
from hooks.sleep.moving import look
from hooks.warmup.steps import Text
from supervisor import Hooks, Profile, Restart, State, Supervised, supervise
from supervisor import events as ev
from supervisor.errors import StepFailed
from support import Recorder, fake_profile, free_port, is_in, until_async

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

# What these tell apart lies in the Steps, whose own tests run on both loops.
on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])
on_trio = pytest.mark.parametrize("anyio_backend", ["trio"])

HEAL = Restart(policy="on-failure", backoff_s=0.01)
BYTES, WEIGHTS_BYTES = 32 << 20, 16 << 20  # of the fake server, and what of it is not zeros


@pytest.fixture(scope="module")
def cuda(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A CUDA driver without a GPU, and the library."""
    return build_once(tmp_path_factory)


@dataclass(kw_only=True)
class Served:
    """A server with GPU memory, and what was seen of it."""

    server: Supervised
    profile: Profile
    seen: Recorder = field(default_factory=Recorder)

    @property
    def folder(self) -> Path:
        """Of the sockets."""
        return Path(str(self.profile.env[VARIABLE]))

    @property
    def notices(self) -> list[str]:
        """In order."""
        return [notice.detail for notice in self.seen.of(ev.Notice)]

    async def damage(self) -> int:
        """Flips a bit of what was put aside; the status of the answer."""
        async with httpx.AsyncClient(trust_env=False) as client:
            return (await client.post(f"{self.server.url}/damage")).status_code

    async def used_bytes(self) -> int:
        """Of GPU memory, by its driver."""
        (status,) = await look(self.folder)
        return status.devices[0].used_bytes


@asynccontextmanager
async def served(
    cuda: Built,
    *,
    command: tuple[str, ...] = fake_profile().command,
    env: dict[str, str] | None = None,
    **settings: Any,
) -> AsyncIterator[Served]:
    """Runs it; `env` holds the driver's faults, settings are GpuMemory's."""
    golden, seen = Golden(), Recorder()
    variables = {"LD_LIBRARY_PATH": str(cuda.folder), **(env or {})}
    command = (*command, "--gpu-engine", str(cuda.engine))
    plain = fake_profile(command=command, env=variables, restart=HEAL)
    memory = GpuMemory(**{"library": cuda.library, "proof": (golden.replay,), "threads": 2, **settings})
    hooks = Hooks(warmup=(Text(),), before_seal=(golden.record,), after_resume=(golden.replay,), observers=(seen,))
    profile = memory.profile(plain)
    async with anyio.create_task_group() as tasks:
        server: Supervised = await tasks.start(supervise, profile, hooks + memory.hooks())
        try:
            yield Served(server=server, profile=profile, seen=seen)
        finally:
            tasks.cancel_scope.cancel()


async def test_memory_is_away_while_it_sleeps_and_comes_back(cuda: Built) -> None:
    """The self-check, the offload, an empty GPU; the reload before the first probe, the golden answer, and again."""
    async with served(cuda) as it:
        assert await it.used_bytes() >= BYTES
        for _ in range(2):
            await it.server.seal()
            assert await it.used_bytes() < BYTES
            await it.server.resume()
            assert await it.used_bytes() >= BYTES
        folder = it.folder
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not folder.exists()
    went, again = it.seen.of(ev.GpuMemoryOffloaded)
    came, _ = it.seen.of(ev.GpuMemoryReloaded)
    assert went.pids == came.pids == again.pids == (it.server.pid,)
    assert (went.bytes, went.stored_bytes, came.stored_bytes) == (BYTES, WEIGHTS_BYTES, WEIGHTS_BYTES)
    assert went.took_s > 0 and went.gb_per_s > 0
    passed = [(step.point, step.step) for step in it.seen.of(ev.StepPassed)]
    sleep = [("sleep", "gpu memory self-check"), ("sleep", "gpu memory offload"), ("wake", "gpu memory reload")]
    assert [one for one in passed if one[0] in ("sleep", "wake")] == sleep * 2
    assert len(it.seen.of(ev.ChildSpawned)) == 1 and it.notices == []


@on_trio
async def test_several_processes_sleep_and_wake_together(cuda: Built) -> None:
    """A worker below a front that has GPU memory too: both go, and both come back."""
    worker = shlex.join([*fake_profile().command[:-1], str(free_port()), "--gpu-engine", str(cuda.engine)])
    front = shlex.join(fake_profile().command)
    command = ("sh", "-c", f'{worker} & exec {front} "$@"', "front")
    async with served(cuda, command=command) as it:
        await until_async(lambda: len(sockets(it.folder)) == 2)
        await it.server.seal()
        assert [status.state for status in await look(it.folder)] == ["asleep"] * 2
        await it.server.resume()
        assert [status.state for status in await look(it.folder)] == ["awake"] * 2
    went, came = it.seen.one(ev.GpuMemoryOffloaded), it.seen.one(ev.GpuMemoryReloaded)
    assert it.server.pid in went.pids and len(went.pids) == 2 and went.pids == came.pids
    assert (went.bytes, came.stored_bytes) == (2 * BYTES, 2 * WEIGHTS_BYTES)


@on_asyncio
async def test_a_flipped_bit_is_found_and_a_cold_start_heals_it(cuda: Built) -> None:
    """The resume fails by its address before anybody is served; the next life serves, seals and resumes."""
    async with served(cuda) as it:
        await it.server.seal()
        first = it.server.pid
        assert await it.damage() == 200
        await it.server.resume()
        assert it.server.pid != first
        assert is_in(it.server, State.READY)
        failed = it.seen.one(ev.StepFailed)
        await it.server.seal()
        await it.server.resume()
    assert (failed.point, failed.step) == ("wake", "gpu memory reload")
    assert "a piece of it came back damaged (" in failed.reason and "bytes at 0x" in failed.reason
    assert len(it.seen.of(ev.GpuMemoryReloaded)) == 1


@on_asyncio
async def test_without_checksums_the_golden_answer_is_what_finds_it(cuda: Built) -> None:
    """Nobody verifies the bytes then: damage comes back, and the replay refuses the server."""
    async with served(cuda, verify=False) as it:
        await it.server.seal()
        assert await it.damage() == 200
        await it.server.resume()
        assert it.seen.one(ev.StepFailed).step == "golden text replay"


@on_trio
async def test_a_server_that_dies_asleep(cuda: Built) -> None:
    """The resume replaces it, as any dead server; nothing of its folder stands in the way."""
    async with served(cuda) as it:
        await it.server.seal()
        first = it.server.pid
        assert first
        os.kill(first, signal.SIGKILL)
        await it.server.resume()
        assert it.server.pid != first
        await it.server.seal()
        await it.server.resume()
    assert len(it.seen.of(ev.GpuMemoryOffloaded)) == 2


@on_asyncio
async def test_a_gpu_that_got_too_full_meanwhile(cuda: Built) -> None:
    """The reload says what it wants and what is free; the cold start takes its place."""
    # Two at the load, two in the self-check, and then none.
    async with served(cuda, env={"FAKE_CUDA_CREATE": "5+"}) as it:
        await it.server.seal()
        await it.server.resume()
        failed = it.seen.one(ev.StepFailed)
    assert failed.step == "gpu memory reload"
    assert "MB free, and it needs " in failed.reason or "GB free, and it needs " in failed.reason
    assert len(it.seen.of(ev.ChildSpawned)) == 2


@on_trio
async def test_an_engine_at_work_is_not_sealed(cuda: Built) -> None:
    """Its GPU does not become idle: the seal is refused, the server keeps its memory and serves on."""
    async with served(cuda, env={"FAKE_CUDA_SYNC_HANG": "1+"}, idle_s=0.2) as it:
        with pytest.raises(StepFailed, match="the GPU is not idle") as caught:
            await it.server.seal()
        assert caught.value.step == "gpu memory self-check"
        assert is_in(it.server, State.READY)
        assert await it.used_bytes() >= BYTES
        await Text()(it.server.child)
    assert len(it.seen.of(ev.ChildSpawned)) == 1


@on_asyncio
async def test_a_driver_that_refuses_leaves_it_to_the_platform(cuda: Built) -> None:
    """A copy that the driver cannot make ends the offload in a notice: the seal passes, nothing was moved."""
    async with served(cuda, env={"FAKE_CUDA_STREAM": "1+"}) as it:
        await it.server.seal()
        assert await it.used_bytes() >= BYTES
        await it.server.resume()
    (notice,) = it.notices
    assert notice.startswith("GPU memory is left to the platform: process ")
    assert len(it.seen.of(ev.ChildSpawned)) == 1


@on_trio
async def test_a_device_without_virtual_memory_leaves_it_to_the_platform(cuda: Built) -> None:
    """The library turns itself off and says so; the server has its memory all the same."""
    async with served(cuda, env={"FAKE_CUDA_NO_VMM": "1+"}) as it:
        await it.server.seal()
        await it.server.resume()
    (notice,) = it.notices
    assert "GPU memory is left to the platform" in notice
    assert it.seen.of(ev.GpuMemoryOffloaded) == []


@on_asyncio
async def test_a_library_that_cannot_be_loaded_keeps_nobody_from_starting(cuda: Built, tmp_path: Path) -> None:
    """A notice at the start, and one at the seal, which passes."""
    library = tmp_path / "libwarmboot_gpu.so"
    library.write_text("no library")
    async with served(cuda, library=library) as it:
        await it.server.seal()
        await it.server.resume()
    start, seal = it.notices
    assert start.startswith("GPU memory cannot be put aside: the library cannot be loaded")
    assert seal.startswith("GPU memory is left to the platform: the library cannot be loaded")


@on_trio
async def test_a_server_without_a_gpu(cuda: Built) -> None:
    """Nothing is caught and nothing moved; the notice says so once a life."""
    seen = Recorder()
    memory = GpuMemory(library=cuda.library)
    async with anyio.create_task_group() as tasks:
        hooks = replace(memory.hooks(), observers=(*memory.hooks().observers, seen))
        server: Supervised = await tasks.start(supervise, memory.profile(fake_profile()), hooks)
        for _ in range(2):
            await server.seal()
            await server.resume()
        tasks.cancel_scope.cancel()
    assert "the library caught nothing. A server that uses no GPU" in seen.one(ev.Notice).detail


@on_asyncio
async def test_memory_that_escaped_is_told_and_left(cuda: Built) -> None:
    """More than the tolerance beside what was caught: the platform's way, with the number."""
    async with served(cuda, tolerance_bytes=0) as it:
        await it.server.seal()
        await it.server.resume()
    (notice,) = it.notices
    assert "holds 16.8 MB on GPU 0 that the library did not catch, beside 33.6 MB that it caught" in notice
    assert it.seen.of(ev.GpuMemoryOffloaded) == []


@on_trio
async def test_a_server_that_cannot_repeat_itself_afterwards_is_replaced(cuda: Built) -> None:
    """Memory that came back wrong in the self-check, unverified: the proof says so, and the child does not serve on."""
    async with served(cuda, env={"FAKE_CUDA_FLIP_IN": "1"}, verify=False) as it:
        first = it.server.pid
        with pytest.raises(StepFailed, match="Most likely the engine worked on the GPU meanwhile"):
            await it.server.seal()
        await until_async(lambda: it.server.pid != first and is_in(it.server, State.READY))
        await it.server.seal()
        await it.server.resume()
    assert [failed.step for failed in it.seen.of(ev.StepFailed)] == ["gpu memory self-check", "gpu memory reload"]
    (notice,) = it.notices
    assert "an earlier life showed that" in notice and it.seen.of(ev.GpuMemoryOffloaded) == []
