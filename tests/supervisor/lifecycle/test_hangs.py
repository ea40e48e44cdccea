"""A child that hangs, as the lifecycle sees it."""

from __future__ import annotations

import os
import resource

import anyio
import httpx
import pytest

from hooks.warmup.steps import Ping, Text
from supervisor import (
    Child,
    Health,
    Hooks,
    Liveness,
    State,
    Stop,
    Timeouts,
    supervise,
)
from supervisor import events as ev
from supervisor.errors import (
    ChildUnresponsive,
)
from supervisor.lifecycle.handle import Supervised
from supervisor.readiness.probe import NotUp, out_of_resources, probe
from support import Do, Recorder, fake_profile, fate, is_in, until_async

pytestmark = pytest.mark.anyio


async def test_a_hang_is_noticed_by_health() -> None:
    """Health that stops answering is a hang after `misses` checks; the process is killed and the error says so."""
    profile = fake_profile(
        "--hang-after-ready", "0.1",
        timeouts=Timeouts(probe_s=0.1), liveness=Liveness(period_s=0.05, misses=2), stop=Stop(grace_s=0.5),
    )  # fmt: skip
    error, seen = await fate(profile)
    assert isinstance(error, ChildUnresponsive)
    assert error.misses == 2
    assert "no answer within 0.1 s" in error.detail
    assert seen.one(ev.ChildUnresponsive).misses == 2


async def test_a_hang_behind_green_health_is_noticed_by_inference() -> None:
    """Completions that hang while health stays green are found by the liveness Step."""
    profile = fake_profile(
        "--hang-completions-after", "1", "--metrics",
        liveness=Liveness(
            period_s=0.05, misses=2, inference_every_s=0.1,
            counters_path="/metrics", counters_pattern=r"(?m)^llamacpp:tokens_predicted_total .*$",
        ),
        stop=Stop(grace_s=0.5),
    )  # fmt: skip
    error, _ = await fate(profile, Hooks(warmup=(Text(),), liveness=(Ping(deadline_s=0.2),)))
    assert isinstance(error, ChildUnresponsive)
    assert "ping" in error.detail


async def test_inference_is_skipped_while_traffic_moves_the_counters() -> None:
    """Real traffic that moves the server's counters spares it the artificial request."""
    ping = Do(action=lambda _: None, name="ping")
    profile = fake_profile(
        "--metrics",
        liveness=Liveness(
            period_s=0.02, inference_every_s=0.15,
            counters_path="/metrics", counters_pattern=r"^llamacpp:tokens_predicted_total .*$",
        ),
    )  # fmt: skip
    async with anyio.create_task_group() as tasks:
        server: Supervised = await tasks.start(supervise, profile, Hooks(liveness=(ping,)))
        async with server.child.client() as client:
            for _ in range(40):
                await client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hi"}]})
                await anyio.sleep(0.02)
        busy = len(ping.calls)
        await until_async(lambda: len(ping.calls) > busy)  # idle: now the Step runs
        tasks.cancel_scope.cancel()
    assert busy == 0


@pytest.mark.parametrize("hungry", ["the probe", "the inference", "the look at the port"])
async def test_what_we_lack_is_no_miss(hungry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While we are out of descriptors or threads, checks that fail for it are told once and count for nothing."""
    seen, shortages = Recorder(), 0
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    def starve() -> None:
        used = os.dup(0)
        os.close(used)
        resource.setrlimit(resource.RLIMIT_NOFILE, (used, limits[1]))

    async def sometimes(client: httpx.AsyncClient, child: Child) -> NotUp | None:
        nonlocal shortages
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        if hungry == "the probe":
            shortages += 1
            starve()
        return await probe(client, child)

    async def no_thread(_: Child) -> NotUp | None:
        nonlocal shortages
        shortages += 1
        return out_of_resources(RuntimeError("can't start new thread"))

    async def hungry_step(child: Child) -> None:
        nonlocal shortages
        shortages += 1
        starve()
        await Ping()(child)

    monkeypatch.setattr("supervisor.readiness.watchdog.probe", sometimes)
    if hungry == "the look at the port":
        monkeypatch.setattr("supervisor.readiness.watchdog.foreign_owner", no_thread)
        monkeypatch.setattr("supervisor.readiness.watchdog._OWNER_EVERY", 1)
    liveness = Liveness(period_s=0.01, misses=1, inference_every_s=0.01)
    hooks = Hooks(liveness=(Do(action=hungry_step),) if hungry == "the inference" else (), observers=(seen,))
    try:
        async with anyio.create_task_group() as tasks:
            server: Supervised = await tasks.start(supervise, fake_profile(liveness=liveness), hooks)
            await until_async(lambda: shortages >= 4 or not is_in(server, State.READY))
            assert is_in(server, State.READY)
            tasks.cancel_scope.cancel()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert seen.one(ev.Notice).detail.startswith("the watchdog is blind: out of resources here: ")
    assert not seen.one(ev.TeardownFinished).escalated


async def test_the_watchdog_waits_for_the_resume() -> None:
    """Armed `resume`: health that fails between READY and the seal is not its business; after the resume it is."""
    red: list[str] = []
    asked: list[int] = []

    def accept(status: int, _: str) -> str | None:
        asked.append(status)
        return "red" if red else None

    liveness = Liveness(armed="resume", period_s=0.02, misses=1)
    profile = fake_profile(health=Health(accept=accept), liveness=liveness, stop=Stop(grace_s=0.5))
    with pytest.raises(ChildUnresponsive):
        try:
            async with anyio.create_task_group() as tasks:
                server: Supervised = await tasks.start(supervise, profile)
                red.append("from now on")
                before = len(asked)
                await anyio.sleep(0.2)  # ten periods
                assert is_in(server, State.READY)
                assert len(asked) == before
                red.clear()
                await server.seal()
                await server.resume()
                red.append("from now on")
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
