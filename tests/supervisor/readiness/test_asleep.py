"""An engine that sleeps of itself: seen, left asleep, and no hang."""

from __future__ import annotations

from pathlib import Path

import anyio
import httpx
import pytest

from hooks.warmup import Ping
from supervisor import Health, Hooks, Liveness, Profile, events, supervise
from supervisor.engines.llama_cpp import LlamaServer, accept
from supervisor.engines.llama_cpp.flags import OWNED
from supervisor.engines.llama_cpp.kind import KIND
from supervisor.errors import ProfileError
from support import READY_LINE, Recorder, fake_profile, until_async

QUICK = Liveness(period_s=0.05, misses=2, inference_every_s=0.3, step_s=5)


@pytest.mark.anyio
async def test_the_watchdog_leaves_a_sleeping_engine_asleep() -> None:
    """An engine that falls asleep between two inferences is asked for none; a request of a client wakes it."""
    recorder, asked = Recorder(), 0

    class Counted(Ping):
        async def __call__(self, child: object) -> None:  # noqa: ARG002  a real one would wake it
            nonlocal asked
            asked += 1

    profile = fake_profile(
        "--sleep-idle-seconds", "0.1", health=Health(accept=accept, ready_pattern=READY_LINE), liveness=QUICK
    )
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tg:
            server = await tg.start(supervise, profile, Hooks(liveness=(Counted(),), observers=(recorder,)))
            await until_async(lambda: recorder.of(events.EngineAsleep))
            before = asked
            await anyio.sleep(3 * QUICK.inference_every_s)  # long enough for three inferences
            assert asked == before
            assert not recorder.of(events.EngineAwake)
            async with httpx.AsyncClient(base_url=server.child.url) as client:
                assert (await client.get("/props")).json()["is_sleeping"]
                with anyio.CancelScope() as stop:
                    async with anyio.create_task_group() as clients:

                        async def keep_awake() -> None:
                            while not recorder.of(events.EngineAwake):
                                await client.get("/slots")
                                await anyio.sleep(0.01)
                            stop.cancel()

                        clients.start_soon(keep_awake)
            tg.cancel_scope.cancel()
    assert [name for name in recorder.names if name.startswith("engine.")] == ["engine.asleep", "engine.awake"]


def test_the_watchdog_does_not_keep_it_awake() -> None:
    """The watchdog's inference comes later than the sleep; an interval that prevents the sleep is refused."""
    settings = {"binary": "llama-server", "model": Path("m.gguf"), "sleep_idle_s": 300}
    known = frozenset(flag for flags in OWNED.values() for flag in flags.split())
    profile = LlamaServer(**settings).profile(known)  # type: ignore[arg-type]
    assert profile.liveness.inference_every_s == 600
    assert profile.command[profile.command.index("--sleep-idle-seconds") + 1] == "300"
    with pytest.raises(ProfileError, match=r"inference_every_s=60\.0 is not valid: .* more than sleep_idle_s=300"):
        LlamaServer(**settings, liveness=Liveness(period_s=5))  # type: ignore[arg-type]
    with pytest.raises(ProfileError, match="metrics=False is not valid: it must be True when sleep_idle_s is set"):
        LlamaServer(**settings, metrics=False)  # type: ignore[arg-type]


@pytest.mark.parametrize(("flags", "every_s"), [((), 60), (("--sleep-idle-seconds", "90"), 180)])
def test_a_plain_command_that_sleeps(flags: tuple[str, ...], every_s: float) -> None:
    """`supervise exec` reads the flag too."""
    profile = Profile(name="x", command=("llama-server", "--port", "{port}", *flags))
    assert KIND.adopt(profile).liveness.inference_every_s == every_s
