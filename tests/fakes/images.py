"""Settings and profiles of the image server before the pipeline in plain Python, for whoever supervises it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from supervisor import Profile, Stop, Timeouts
from supervisor.engines.images import Images
from tools.image_server import images, pipeline

LIMITS = Timeouts(start_s=30, stall_s=30, probe_s=5, step_s=20, resume_s=20)


def settings(folder: Path, **more: Any) -> Images:
    """Settings with short limits."""
    defaults: dict[str, Any] = {"timeouts": LIMITS, "stop": Stop(grace_s=2, drain_s=2)}
    return images(folder, **(defaults | more))


def supervised(folder: Path, faults: dict[str, Any] | None = None, **more: Any) -> Profile:
    """The profile of a server with such faults; see `fakes.image_pipeline`."""
    return settings(pipeline(folder, **(faults or {})), **more).profile()
