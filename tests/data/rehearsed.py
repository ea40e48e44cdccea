"""Specs for rehearsals: the fake server with flags of the environment, and the real engine with and without mmap."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path

from hooks.contract import SnapshotContract
from hooks.golden import Golden
from hooks.sleep import GpuMemory
from hooks.warmup.steps import Ping, Text
from supervisor import Child, Health, Hooks, Liveness, Profile, Secret, Timeouts
from supervisor.engines import embedded
from supervisor.steps import step

FAKE = Path(__file__).resolve().parent.parent / "fakes" / "fake_server.py"


def fake() -> tuple[Profile, Hooks]:
    """The fake server; its timers are so short that one which spans a suspension would fire."""
    flags = shlex.split(os.environ.get("REHEARSED_FLAGS", ""))
    key = os.environ.get("REHEARSED_API_KEY")
    profile = Profile(
        name="fake",
        command=(sys.executable, "-I", "-S", str(FAKE), "--port", "{port}", *flags),
        env={"LLAMA_API_KEY": Secret(key)} if key else {},
        api_key=Secret(key) if key else None,
        inherit_env=tuple(os.environ.get("REHEARSED_INHERIT", "PATH").split()),
        health=Health(ready_pattern="server is listening on"),
        timeouts=Timeouts(start_s=20, stall_s=3, probe_s=2, step_s=5, resume_s=4),
        liveness=Liveness(period_s=0.2, misses=2, inference_every_s=0.4),
    )
    return profile, Hooks(warmup=(Text(),), liveness=(Text(),))


def gpu() -> tuple[Profile, Hooks]:
    """The fake server with its weights in the memory of a GPU, which a driver without one holds.

    The folder of that driver is in REHEARSED_CUDA; with REHEARSED_DAMAGE a byte that was put aside is damaged after the
    restore.
    """
    cuda, golden = Path(os.environ["REHEARSED_CUDA"]), Golden()
    profile, hooks = fake()
    command = (*profile.command, "--gpu-engine", str(cuda / "libengine.so"))
    profile = replace(profile, command=command, env={"LD_LIBRARY_PATH": str(cuda)})
    memory = GpuMemory(library=cuda / "libwarmboot_gpu.so", proof=(golden.replay,))
    hooks = replace(hooks, before_seal=(golden.record, SnapshotContract()), after_resume=(golden.replay,))
    if "REHEARSED_DAMAGE" in os.environ:
        hooks = replace(hooks, wake=(step("damage", _damage),))
    return memory.profile(profile), hooks + memory.hooks()


async def _damage(child: Child) -> None:
    async with child.client() as client:
        (await client.post("/damage")).raise_for_status()


ASYNCIO = """
import asyncio, sys
async def answer(reader, writer):
    await reader.readuntil(b"\\r\\n\\r\\n")
    writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\nConnection: close\\r\\n\\r\\nok")
    writer.close()
async def main():
    await (await asyncio.start_server(answer, "127.0.0.1", int(sys.argv[1]))).serve_forever()
asyncio.run(main())
"""
asyncio_server = Profile(name="asyncio", command=(sys.executable, "-c", ASYNCIO, "{port}"), inherit_env=("PATH",))
# Python's -I reads no PYTHONPATH, as little as a server in another language does.
sealed_off = replace(asyncio_server, command=(sys.executable, "-I", "-c", ASYNCIO, "{port}"))


def one_thread() -> tuple[Profile, Hooks]:
    """The profile `local`, but for its threads: on a busy machine, and in gVisor, they mostly wait for each other."""
    engine = embedded.Embedded(settings={"threads": 1})
    return engine.profile(), replace(engine.hooks(), warmup=(Text(),), liveness=(Ping(),))


def mmap() -> tuple[Profile, Hooks]:
    """Gemma 3 270M with its weights mapped, as llama-server does unless told otherwise; no restart may repair them."""
    hooks = Hooks(before_start=(embedded.AssembleModel(),), warmup=(Text(),))
    profile = embedded.profile(load="mmap", threads=1)
    return replace(profile, restart=replace(profile.restart, policy="on-resume", max_restarts=0)), hooks
