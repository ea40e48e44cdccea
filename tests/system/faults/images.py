"""Faults of the image server: the real program before a pipeline in plain Python (`fakes/image_pipeline.py`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from fakes.images import settings
from hooks.auth import AuthCheck
from hooks.golden import Golden
from hooks.warmup import Draw, Ping
from supervisor import Child, Hooks, Liveness, Profile, Timeouts, step
from system.faults.fault import Fault
from system.faults.settings import HEAL, KEY, QUICK
from tools.image_server import pipeline

WATCH = Liveness(period_s=0.05, misses=2, inference_every_s=0.05, step_s=0.5)
PATIENT = Liveness(period_s=0.05, misses=1000, inference_every_s=0.05)
PINGED = "a red square"  # what a ping has drawn


def setting(faults: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """Folder, command and profile of a server for everybody, for a row."""
    profile = settings(Path("{tmp}/model"), **({"open_access": True} | more)).profile()
    rest = {field.name: getattr(profile, field.name) for field in fields(Profile)}
    return {
        "prepare": lambda tmp: pipeline(tmp / "model", **(faults or {})) and None,
        "command": rest.pop("command"),
        "profile": rest,
    }


def warmed(_: Path) -> Hooks:
    return Hooks(warmup=(Draw(),))


def pinged(_: Path) -> Hooks:
    return Hooks(liveness=(Ping(),))


def keyless(_: Path) -> Hooks:
    return Hooks(warmup=(AuthCheck(),))


def with_golden(after: Callable[[Path], None]) -> Callable[[Path], Hooks]:
    """A golden picture, and what happens to the model while it is sealed."""

    def hooks(tmp: Path) -> Hooks:
        golden = Golden(size="32x32")

        async def harm(_: Child) -> None:
            after(tmp / "model" / "weights.safetensors")

        return Hooks(before_seal=(golden.record, step("harm", harm)), after_resume=(golden.replay,))

    return hooks


def damage(weights: Path) -> None:
    weights.write_bytes(b"damaged")


# fmt: off
IMAGES: tuple[Fault, ...] = (
    Fault(
        name="images-no-model", fault="images: the pipeline's weights are missing", moment="loading",
        outcome="refused", error="DiedBeforeReady", status=3, says="the load failed at weights: FileNotFoundError",
        **{**setting(), "prepare": None},
    ),
    Fault(
        name="images-out-of-memory", fault="images: no memory for the weights", moment="loading", outcome="refused",
        error="DiedBeforeReady", status=3, says="It could not allocate memory", **setting({"load_error": "memory"}),
    ),
    Fault(
        name="images-load-hangs", fault="images: the load hangs while health answers by its stage", moment="loading",
        outcome="refused", error="LoadStalled", status=3, says="the load stalled",
        **setting({"hang_load": True}, timeouts=Timeouts(start_s=60, stall_s=1.5)),
    ),
    Fault(
        name="images-open", fault="images: the key does not reach the server, which then serves everybody",
        moment="warmup", outcome="refused", error="StepFailed", status=4, says="the server is open to everybody",
        hooks=keyless, **{**(made := setting(api_key=KEY, open_access=False)),
                          "profile": {**made["profile"], "api_key_env": None}},
    ),
    Fault(
        name="images-cannot-draw", fault="images: every image fails", moment="warmup", outcome="refused",
        error="StepFailed", status=4, says="out of memory: OutOfMemoryError", hooks=warmed,
        **setting({"by_prompt": {Draw().prompt: "memory"}}),
    ),
    Fault(
        name="images-hangs", fault="images: the pipeline hangs behind a green health", moment="ready",
        outcome="failed", error="ChildUnresponsive", status=1, says="ping", hooks=pinged,
        **setting({"hang_at": 0}, liveness=WATCH),
    ),
    Fault(
        name="images-device-lost", fault="images: the GPU is lost in the middle of an image", moment="ready",
        outcome="failed", error="ChildCrashed", status=1, says="the device is lost", hooks=pinged,
        **setting({"by_prompt": {PINGED: "lost"}}, liveness=PATIENT),
    ),
    Fault(
        name="images-killed-restart", fault="images: SIGKILL of the server, a restart is allowed", moment="ready",
        outcome="recovered", act="kill", lives=2, hooks=warmed, **setting(restart=QUICK),
    ),
    Fault(
        name="images-other-picture", fault="images: the restored weights draw another picture", moment="resumed",
        outcome="recovered", act="nothing", lives=2, proof="of 255 apart in the mean", hooks=with_golden(damage),
        **setting({"reread": True}, restart=HEAL),
    ),
    Fault(
        name="images-stop-hangs", fault="images: a stop while the pipeline hangs", moment="stopping",
        outcome="stopped", escalated=False, hooks=pinged,
        **setting({"hang_at": 0}, liveness=Liveness(inference_every_s=0.05)),
    ),
)
# fmt: on
