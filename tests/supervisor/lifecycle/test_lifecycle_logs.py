"""The log of a supervised child, and what a hundred of them leave behind."""

from __future__ import annotations

import os

import anyio
import pytest

from hooks.warmup.steps import Text
from supervisor import (
    Hooks,
    Secret,
    supervise,
)
from supervisor import events as ev
from supervisor.errors import (
    SupervisorError,
)
from support import Recorder, fake_profile, until_async

pytestmark = pytest.mark.anyio


async def test_logs_of_a_flood_do_not_block_the_child() -> None:
    """50 MB written as fast as it can are drained to the end; what was not kept is counted."""
    seen = Recorder()
    profile = fake_profile("--flood-lines-per-s", "0", "--flood-bytes-total", "50000000")
    async with anyio.create_task_group() as tasks:
        await tasks.start(supervise, profile, Hooks(observers=(seen,)))
        await until_async(lambda: "FLOOD DONE" in seen.lines(), limit_s=40)
        tasks.cancel_scope.cancel()
    kept = sum(line.startswith("flood line") for line in seen.lines()) * 80  # they are padded
    dropped = sum(drop.bytes for drop in seen.of(ev.LogDropped))
    assert kept + dropped == pytest.approx(50_000_000, rel=0.001)


async def test_a_secret_never_reaches_an_event() -> None:
    """Secrets that the child logs, also cut in two writes, are masked in lines, argv and errors."""
    secret = Secret("very-secret-value-123")
    seen = Recorder()
    profile = fake_profile(
        "--echo-secret", secret.reveal(), "--echo-secret-split", secret.reveal(), "--exit-after-requests", "1",
        env={"PLANTED": secret},
    )  # fmt: skip
    with pytest.raises(SupervisorError) as caught:
        await supervise(profile, Hooks(warmup=(Text(), Text()), observers=(seen,)))
    assert "very-secret" not in repr(seen.events) + str(caught.value) + repr(caught.value)
    assert sum("***" in line for line in seen.lines()) == 2


async def test_a_hundred_cycles_leak_nothing() -> None:
    """After many start and stop cycles the process holds the descriptors that it held before."""
    profile = fake_profile()

    async def cycle() -> None:
        async with anyio.create_task_group() as tasks:
            await tasks.start(supervise, profile)
            tasks.cancel_scope.cancel()

    await cycle()
    before = len(os.listdir("/dev/fd"))
    for _ in range(100):
        await cycle()
    assert len(os.listdir("/dev/fd")) == before
