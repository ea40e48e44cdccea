"""Faults of llama.cpp's router and of its idle sleep, played on fakes that misbehave as the real ones do."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from supervisor import Health, Hooks, Liveness
from supervisor.engines.llama_cpp import LlamaRouter, accept
from supervisor.engines.llama_cpp.dialect import READY as READY_LINE
from supervisor.engines.llama_cpp.router_dialect import dialect_of
from support import TESTS
from system.faults.fault import Fault
from system.faults.hook_sets import pinged
from system.faults.settings import QUICK, WATCH

COMMAND = (sys.executable, "-I", "-S", str(TESTS / "fakes" / "fake_router.py"), "--port", "{port}")
# The pings come later than the sleep.
RARE = Liveness(period_s=0.05, misses=2, inference_every_s=0.5)


def router(sea: str = "", *flags: str, autoload: bool = True, needed: str = "sea", **fields: Any) -> Mapping[str, Any]:
    """A router with two models, `sea`, which must be loaded, and `hill`, for a row; `sea`: a line of its section."""

    def prepare(tmp: Path) -> None:
        (tmp / "models.ini").write_text(f"[sea]\nload-on-startup = true\n{sea}\n[hill]\n", encoding="utf-8")

    health = Health(accept=accept, model_id=needed, must_load=(needed,), ready_pattern=READY_LINE)
    dialect = dialect_of(["sea"], autoload=autoload)
    return {
        "command": (*COMMAND, "--models-preset", "{tmp}/models.ini", *flags),
        "prepare": prepare,
        "profile": {"health": health, "dialect": dialect, "liveness": WATCH, **fields},
    }


def twice(tmp: Path) -> Hooks:
    """A preset that names a model twice: the real router would take the later without a word."""
    preset = tmp / "models.ini"
    preset.write_text("[sea]\nmodel = a.gguf\n[sea]\nmodel = b.gguf\n", encoding="utf-8")
    return LlamaRouter(binary="llama-server", preset=preset).hooks(frozenset({"--models-preset"}))


# fmt: off
ROUTER: tuple[Fault, ...] = (
    Fault(
        name="router-preset-twice", fault="router: its preset names a model twice", moment="before spawn",
        outcome="refused", error="ProfileError", status=2, says="of two, the later wins", stage="run", hooks=twice,
        lives=0,
    ),
    Fault(
        name="router-load-fails", fault="router: a model that must be loaded cannot be, behind a green health",
        moment="loading", outcome="refused", error="WrongModel", status=3,
        says="it is failed (its process exited with code 1)", **router("exit-while-loading = 7"),
    ),
    Fault(
        name="router-unknown-model", fault="router: it does not know the model that must be loaded", moment="loading",
        outcome="refused", error="WrongModel", status=3, says="it knows 'hill', 'sea'", **router(needed="lake"),
    ),
    Fault(
        name="router-model-killed", fault="router: SIGKILL of the model that must be loaded, and no request for it",
        moment="ready", outcome="failed", error="ChildUnresponsive", status=1, act="kill model",
        says="the model 'sea' must be loaded: it is failed", **router(),
    ),
    Fault(
        name="router-model-killed-restart", fault="the same, a restart is allowed", moment="ready",
        outcome="recovered", act="kill model", lives=2, **router(restart=QUICK),
    ),
    Fault(
        name="router-evicted", fault="router: `models_max` evicts the model that must be loaded; a request loads it",
        moment="ready", outcome="recovered", act="evict", proof="removing LRU name=sea",
        **router("", "--models-max", "1"),
    ),
    Fault(
        name="router-unloaded", fault="router: somebody unloads that model, and the router loads none by itself",
        moment="ready", outcome="failed", error="ChildUnresponsive", status=1, act="unload",
        says="the model 'sea' must be loaded: it is unloaded", **router("", "--no-models-autoload", autoload=False),
    ),
    Fault(
        name="llama-asleep", fault="llama.cpp: asleep behind a green health for want of requests", moment="ready",
        outcome="recovered", act="fall asleep", flags=("--sleep-idle-seconds", "0.2"), profile={"liveness": RARE},
        hooks=pinged, proof="engine.asleep",
    ),
)
# fmt: on
