"""vLLM under supervision: the fake misbehaves as the real server does (tests/fakes/vllm_server.py)."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import httpx
import pytest

from fakes.vllm import BINARY, KEY, LIMITS, known, supervised, vllm
from hooks.auth import AuthCheck, AuthError
from hooks.golden import Golden
from hooks.http.dialect import read
from hooks.warmup import Text
from supervisor import Hooks, Profile, Restart, State, Supervised, supervise
from supervisor.engines import PlainServer, catalogue
from supervisor.engines.vllm.sleep import Wake
from supervisor.errors import ChildCrashed, DiedBeforeReady, StepFailed
from supervisor.linux import files, processes
from support import Recorder, fate, is_in

pytestmark = pytest.mark.anyio

HEAL = Restart(policy="on-resume", backoff_s=0.01, jitter=0.0)
QUESTION = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "logprobs": True}


@asynccontextmanager
async def running(profile: Profile, hooks: Hooks) -> AsyncIterator[Supervised]:
    """The server, READY, until the end of the block."""
    async with anyio.create_task_group() as group:
        yield await group.start(supervise, profile, hooks)
        group.cancel_scope.cancel()


async def answer(server: Supervised) -> str:
    """What it says to a question."""
    async with server.child.client(timeout_s=10) as client:
        said = await client.post("/v1/chat/completions", json=QUESTION)
    return str(said.json()["choices"][0]["message"]["content"])


def worker(server: Supervised, title: str) -> int:
    """The pid of a process of the engine."""
    child = server.child
    assert child.pid
    members = processes.members(child.pid, child.cookie)
    return next(pid for pid in members if files.argv(pid)[:1] in ([title], (title,)))


async def test_ready_with_closed_routes() -> None:
    """The server is READY once strangers are refused everywhere, `/invocations` and the administration among it."""
    profile, hooks = supervised(sleep=1, api_key=KEY)
    async with running(profile, hooks + Hooks(warmup=(AuthCheck(), Text()))) as server:
        assert is_in(server, State.READY)
        async with server.child.client() as client:
            assert (await client.get("/is_sleeping")).status_code == 401
            assert (await client.post("/sleep")).status_code == 401
            assert (await client.post("/invocations", json=QUESTION)).status_code == 200
            assert (await client.get("/metrics", headers={"Authorization": ""})).status_code == 200


async def test_open_access_leaves_the_administration_closed() -> None:
    """A server that everybody may ask can be put to sleep by nobody but its supervisor."""
    profile, hooks = supervised(sleep=2, open_access=True)
    async with running(profile, hooks) as server, server.child.client() as client:
        assert (await client.post("/v1/chat/completions", json=QUESTION)).status_code == 200
        assert (await client.post("/sleep?level=2")).status_code == 401


@pytest.mark.parametrize("settings", [{"api_key": KEY}, {"sleep": 1}])
async def test_a_build_that_ignores_the_guard_is_refused(settings: dict[str, object]) -> None:
    """The warmup proves that the guard stands; where it does not, the server is never READY, and routes are named."""
    error, _ = await fate(*supervised("no-middleware", **settings))
    assert isinstance(error, StepFailed)
    route = (
        "POST /invocations without a key: HTTP 400" if "api_key" in settings else "GET /sleep without a key: HTTP 405"
    )
    assert route in str(error)
    assert KEY.reveal() not in str(error)


async def test_a_bare_command_with_a_hole_is_refused() -> None:
    """`vllm serve` with a key, under `exec`, is told which flag closes what its key leaves open."""
    kind = catalogue.named("vllm")
    bare = PlainServer(command=(*BINARY, "serve", "tiny", "--port", "{port}", "--served-model-name", "tiny")).profile()
    profile = kind.adopt(replace(bare, api_key=KEY, timeouts=LIMITS))
    error, _ = await fate(profile, kind.hooks(profile))
    assert isinstance(error, StepFailed)
    assert "--middleware warmboot_vllm_guard.Guard" in str(error)
    assert "POST /invocations without a key: HTTP 400 instead of 401" in str(error)
    async with running(profile, Hooks()) as server:
        with pytest.raises(AuthError, match="protects only a part"):
            await AuthCheck()(server.child)
    unknown = kind.adopt(replace(bare, env={"VLLM_API_KEY": KEY}, timeouts=LIMITS))  # nobody told us the key
    error, _ = await fate(unknown, kind.hooks(unknown))
    assert "POST /invocations without a key: HTTP 400 instead of 401" in str(error)
    opened = replace(profile, api_key=None, open_access=True, env={"VLLM_SERVER_DEV_MODE": "1"})
    error, _ = await fate(opened, kind.hooks(opened))
    assert "GET /wake_up without a key: HTTP 405" in str(error)


@pytest.mark.parametrize("level", [1, 2])
async def test_sleep_and_wake(level: int) -> None:
    """Sealed it sleeps behind a green health; resumed, it answers as it did before."""
    profile, hooks = supervised(sleep=level, api_key=KEY)
    golden = Golden()
    hooks += Hooks(before_seal=(golden.record,), after_resume=(golden.replay,))
    async with running(profile, hooks) as server:
        before = await answer(server)
        await server.seal()
        async with server.child.client() as client:
            assert (await client.get("/health")).status_code == 200
        reading = profile.dialect.asleep
        assert reading
        assert await read(server.child, reading) is True
        pid = server.child.pid
        await server.resume()
        assert server.child.pid == pid
        assert await read(server.child, reading) is False
        assert await answer(server) == before


async def test_a_request_to_a_sleeping_engine_waits() -> None:
    """Whoever asks while the engine sleeps gets the answer once it is awake, and no error before."""
    profile, hooks = supervised(sleep=1)
    async with running(profile, hooks) as server:
        await server.seal()
        async with server.child.client(timeout_s=0.2) as client:
            with pytest.raises(httpx.ReadTimeout):
                await client.post("/v1/chat/completions", json=QUESTION)
        await server.resume()
        assert await answer(server) == "The sea sleeps."


async def test_a_wake_of_the_wrong_level_is_garbage() -> None:
    """The order of the calls matters: weights that were dropped and not read again answer without any error."""
    profile, hooks = supervised(sleep=2)
    async with running(profile, replace(hooks, wake=(Wake(level=1),))) as server:
        await server.seal()
        await server.resume()
        assert set(await answer(server)) == {"!"}


async def test_garbage_after_a_wake_is_healed_by_a_cold_start() -> None:
    """A reload that did nothing is found by the golden answer, and a new child takes over."""
    profile, hooks = supervised("no-reload", sleep=2, restart=HEAL)
    golden = Golden()
    hooks += Hooks(before_seal=(golden.record,), after_resume=(golden.replay,))
    async with running(profile, hooks) as server:
        pid = server.child.pid
        await server.seal()
        await server.resume()
        assert server.child.pid != pid
        assert await answer(server) == "The sea sleeps."


async def test_an_engine_that_cannot_sleep_stays_ready() -> None:
    """A refused sleep refuses the seal, says what the engine answered, and leaves the server serving."""
    profile, hooks = supervised("no-sleep", sleep=1)
    async with running(profile, hooks) as server:
        with pytest.raises(StepFailed, match=r"POST /sleep\?level=1&mode=wait: HTTP 500"):
            await server.seal()
        assert is_in(server, State.READY)
        assert await answer(server) == "The sea sleeps."


async def test_an_engine_that_sleeps_on_is_replaced() -> None:
    """vLLM says 200 to a wake that did nothing; the Step asks again, and the resume is healed."""
    profile, hooks = supervised("no-wake", sleep=1, restart=HEAL)
    async with running(profile, hooks) as server:
        pid = server.child.pid
        await server.seal()
        await server.resume()
        assert server.child.pid != pid


@pytest.mark.parametrize("title", ["VLLM::EngineCore", "VLLM::Worker"])
async def test_a_dead_worker_is_noticed_at_once(title: str) -> None:
    """The end of a worker ends the child and is named, not the exit code 0 that the server has seconds later."""
    profile, hooks = supervised("linger=20")
    seen = Recorder()
    with pytest.raises(ExceptionGroup) as caught:
        async with running(profile, replace(hooks, observers=(seen,))) as server:
            os.kill(worker(server, title), signal.SIGKILL)
            await anyio.sleep_forever()
    (error,) = caught.value.exceptions
    assert isinstance(error, ChildCrashed)
    assert title in str(error)


async def test_the_cause_survives_the_noise() -> None:
    """Sixty lines of noise follow the error of a failed load; the report has it, and knows that memory lacked."""
    error, _ = await fate(*supervised("die-loading"))
    assert isinstance(error, DiedBeforeReady)
    assert "CUDA out of memory. Tried to allocate 2.00 GiB." in (error.out_of_memory or "")
    assert "leaked function" in str(error)


async def test_a_wrong_parallel_size_says_so() -> None:
    """A parallel size that does not fit the model ends the start with vLLM's own words for it."""
    error, _ = await fate(*supervised(tensor_parallel_size=3))
    assert isinstance(error, DiedBeforeReady)
    assert "(4) must be divisible by tensor parallel size (3)" in str(error)


async def test_the_same_question_twice() -> None:
    """The prefix cache changes the last bits of a repeated question; the dialect's fields pass it by."""
    profile, hooks = supervised()
    async with running(profile, hooks) as server, server.child.client() as client:

        async def ask(**more: object) -> float:
            said = await client.post("/v1/chat/completions", json={**QUESTION, **more})
            return float(said.json()["choices"][0]["logprobs"]["content"][0]["logprob"])

        assert await ask() != await ask()
        assert await ask(**profile.dialect.repeatable(1)) == await ask(**profile.dialect.repeatable(1))


async def test_counters_and_gauges_of_a_running_server() -> None:
    """Tokens are counted, and nobody is in flight."""
    profile, hooks = supervised()
    async with running(profile, hooks) as server:
        counters = profile.dialect.token_counters
        assert counters
        before = await read(server.child, counters)
        await answer(server)
        assert await read(server.child, counters) != before
        assert [await read(server.child, reading) for reading in profile.dialect.requests] == [0]


def test_the_flags_of_the_fake_are_those_of_the_real_one(tmp_path: Path) -> None:
    """The fake's help is the captured one, so that settings are fitted to it as to vLLM."""
    assert vllm(config=tmp_path / "x.yaml").command == BINARY
    assert vllm().profile().command == vllm().profile(known()).command
