"""Faults of vLLM, played on the fake that misbehaves as it does (`fakes/vllm_server.py`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from fakes.vllm import supervised
from hooks.golden import Golden
from supervisor import Hooks, Profile
from system.faults.fault import Fault
from system.faults.settings import HEAL, QUICK


def setting(faults: str = "", **settings: Any) -> dict[str, Any]:
    """Command, fields of the profile and hooks of a server for everybody, for a row."""
    profile, hooks = supervised(faults, open_access=True, **settings)
    rest: Mapping[str, Any] = {field.name: getattr(profile, field.name) for field in fields(Profile)}
    return {
        "command": profile.command,
        "profile": {name: value for name, value in rest.items() if name != "command"},
        "hooks": lambda _: hooks,
    }


def golden(faults: str) -> dict[str, Any]:
    """A server that sleeps at level 2, with golden answers, and that a resume may replace."""
    made = setting(faults, sleep=2, restart=HEAL)
    answers = Golden()
    added = Hooks(before_seal=(answers.record,), after_resume=(answers.replay,))
    return {**made, "hooks": lambda tmp: made["hooks"](tmp) + added}


def conflict(tmp: Path) -> Hooks:
    """A key of the YAML file that a setting owns: refused while the profile is made."""
    config = tmp / "vllm.yaml"
    config.write_text("max-model-len: 4096\n", encoding="utf-8")
    return supervised(config=config, max_model_len=1024)[1]


# fmt: off
VLLM: tuple[Fault, ...] = (
    Fault(
        name="vllm-config-conflict", fault="vLLM: its YAML file sets what a setting owns", moment="before spawn",
        outcome="refused", error="ProfileError", status=2, says="'max-model-len', which belongs to the setting",
        stage="run", hooks=conflict, lives=0,
    ),
    Fault(
        name="vllm-parallel-size", fault="vLLM: a parallel size that does not divide the heads", moment="loading",
        outcome="refused", error="DiedBeforeReady", status=3, says="divisible by tensor parallel size (3)",
        **setting(tensor_parallel_size=3),
    ),
    Fault(
        name="vllm-out-of-memory", fault="vLLM: no memory for the weights, and sixty lines of noise after that",
        moment="loading", outcome="refused", error="DiedBeforeReady", status=3,
        says="It could not allocate memory (Worker_TP0: torch.OutOfMemoryError", **setting("die-loading"),
    ),
    Fault(
        name="vllm-open-route", fault="vLLM: the routes that put it to sleep are open to everybody", moment="warmup",
        outcome="refused", error="StepFailed", status=4, says="GET /sleep without a key: HTTP 405 instead of 401",
        **setting("no-middleware", sleep=1),
    ),
    Fault(
        name="vllm-worker-killed", fault="vLLM: SIGKILL of a worker; the server would end with code 0 later",
        moment="ready", outcome="failed", error="WorkerDied", status=1, says="VLLM::", act="kill vital",
        **setting("linger=20"),
    ),
    Fault(
        name="vllm-worker-killed-restart", fault="the same, a restart is allowed", moment="ready",
        outcome="recovered", act="kill vital", lives=2, **setting("linger=20", restart=QUICK),
    ),
    Fault(
        name="vllm-cannot-sleep", fault="vLLM: `/sleep` fails", moment="sealed", outcome="refused",
        error="StepFailed", says="POST /sleep?level=1", **setting("no-sleep", sleep=1),
    ),
    Fault(
        name="vllm-sleeps-on", fault="vLLM: asleep behind a green health after a wake that answered 200",
        moment="resumed", outcome="recovered", act="nothing", lives=2, proof="the engine still sleeps",
        **setting("no-wake", sleep=1, restart=HEAL),
    ),
    Fault(
        name="vllm-garbage", fault="vLLM: weights that were not read again after a deep sleep answer garbage",
        moment="resumed", outcome="recovered", act="nothing", lives=2, **golden("no-reload"),
    ),
)
# fmt: on
