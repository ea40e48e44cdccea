"""Faults of SGLang, played on the fake that misbehaves as it does (`fakes/sglang_server.py`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from fakes.sglang import SHORT, server_of
from hooks.golden import Golden
from hooks.warmup import Text
from supervisor import Child, Hooks, Profile, Stop, step
from supervisor.engines.sglang import MemorySaver
from supervisor.engines.sglang.dialect import QUIET_HEALTH
from supervisor.steps import Step
from system.faults.fault import Fault
from system.faults.settings import HEAL, QUICK

KEPT = "--enable-weights-cpu-backup"


def setting(*faults: str, more: Hooks | None = None, loud: bool = False, **settings: Any) -> dict[str, Any]:
    """Command, fields of the profile and hooks of a server for everybody, for a row.

    Args:
        faults: flags of the fake.
        more: added to the hooks of the settings.
        loud: its health generates, as SGLang's does of itself.
        settings: of `Sglang`.
    """
    server, profile = server_of(*faults, **{"api_key": None, "open_access": True, "memory_saver": False, **settings})
    hooks = server.hooks() + (more or Hooks())
    rest: Mapping[str, Any] = {field.name: getattr(profile, field.name) for field in fields(Profile)}
    env = {name: value for name, value in profile.env.items() if not (loud and name in QUIET_HEALTH)}
    return {
        "command": profile.command,
        "profile": {**{name: value for name, value in rest.items() if name != "command"}, "env": env},
        "hooks": lambda _: hooks,
    }


def sleeps(*steps: Step, wakes: int = 1, idle_s: float = 10.0) -> Hooks:
    """Released while sealed, with Steps that somebody else takes meanwhile, and woken so many times."""
    saver = MemorySaver(idle_s=idle_s)
    return Hooks(sleep=(saver.release, *steps), wake=(saver.resume,) * wakes, after_resume=(Text(),))


def conflict(text: str, **settings: Any) -> Callable[[Path], Hooks]:
    """A key of the YAML file that must not stand there: refused while the profile is made."""

    def make(tmp: Path) -> Hooks:
        config = tmp / "sglang.yaml"
        config.write_text(text, encoding="utf-8")
        server_of(config=config, **settings)
        return Hooks()

    return make


async def probe(child: Child) -> None:
    """Whoever reaches the port may ask this, without a key."""
    async with child.client(timeout_s=5, with_key=False) as client:
        await client.get("/health_generate")


async def unpause(child: Child) -> None:
    """What lets a request reach an engine whose memory is released."""
    saver = MemorySaver()
    saver._state.paused = (child.cookie, child.pid)
    await saver.resume(child)


golden = Golden()
answers = Hooks(before_seal=(golden.record,), after_resume=(golden.replay,))
probed = sleeps(step("probe", probe))
late = sleeps()
unguarded = Hooks(sleep=late.sleep, wake=(step("unpause", unpause), step("probe", probe), *late.wake))

# fmt: off
SGLANG: tuple[Fault, ...] = (
    Fault(
        name="sglang-config-conflict", fault="SGLang: its YAML file sets what a setting owns", moment="before spawn",
        outcome="refused", error="ProfileError", status=2, says="'tp-size', which belongs to the setting 'tp_size'",
        stage="run", hooks=conflict("tp-size: 4\n", tp_size=2), lives=0,
    ),
    Fault(
        name="sglang-tokenizers", fault="SGLang: its YAML file asks for several tokenizers, which ask for no key",
        moment="before spawn", outcome="refused", error="ProfileError", status=2, says="asks for no key at all",
        stage="run", hooks=conflict("tokenizer-worker-num: 2\n"), lives=0,
    ),
    Fault(
        name="sglang-scheduler-killed", fault="SGLang: SIGKILL of its scheduler; the server would end seconds later",
        moment="ready", outcome="failed", error="WorkerDied", status=1, says="sglang::", act="kill vital",
        **setting("--diagnostics-s", "60", stop=SHORT),
    ),
    Fault(
        name="sglang-scheduler-killed-restart", fault="the same, a restart is allowed", moment="ready",
        outcome="recovered", act="kill vital", lives=2,
        **setting("--diagnostics-s", "60", stop=SHORT, restart=QUICK, more=Hooks(warmup=(Text(),))),
    ),
    Fault(
        name="sglang-busy", fault="SGLang: its memory is to be released while a request runs", moment="sealed",
        outcome="refused", error="StepFailed", says="POST /flush_cache",
        **setting(KEPT, "--busy", stop=SHORT, more=sleeps(idle_s=0.05)),
    ),
    Fault(
        name="sglang-second-resume", fault="SGLang: it is woken twice; a second resume would end it", moment="resumed",
        outcome="recovered", act="nothing", **setting(KEPT, more=sleeps(wakes=2)),
    ),
    Fault(
        name="sglang-probed-asleep", fault="SGLang: somebody's `/health_generate` while its memory is released",
        moment="resumed", outcome="recovered", act="nothing", **setting(KEPT, more=probed),
    ),
    Fault(
        name="sglang-probed-loud", fault="the same, unpaused, and its health generates: the scheduler dies",
        moment="resumed", outcome="recovered", act="nothing", lives=2, proof="cannot be accessed from Triton",
        **setting(KEPT, more=unguarded, loud=True, stop=SHORT, restart=HEAL),
    ),
    Fault(
        name="sglang-garbage", fault="SGLang: weights that were not kept in host memory answer garbage",
        moment="resumed", outcome="recovered", act="nothing", lives=2,
        **setting(restart=HEAL, more=sleeps() + answers),
    ),
    Fault(
        name="sglang-stop", fault="SGLang: a stop; a signal to its scheduler would look like a crash to it",
        moment="stopping", outcome="stopped", act="stop", escalated=False, **setting(),
    ),
    Fault(
        name="sglang-stop-group", fault="the same, and the stop is for the whole group", moment="stopping",
        outcome="stopped", act="stop", proof="SIGQUIT received", **setting(stop=Stop(grace_s=5)),
    ),
)
# fmt: on
