"""Ours, from spawn to READY: the lag behind the server's own stamp, probes sent, CPU used while waiting."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import anyio

from bench.setting import FAKE
from bench.subjects import answer_jobs
from supervisor import Health, Hooks, Profile, Stop, events, supervise
from supervisor.events import Event

READY_LINE = "server is listening on"


def stamped(path: Path, word: str) -> float:
    """When the server stamped that word first."""
    return next(float(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(f"{word} "))


def fake_profile(*flags: str, ready_line: bool, **fields: Any) -> Profile:
    """The fake server, with or without a pattern for its ready line."""
    return Profile(
        name="fake",
        command=(sys.executable, "-I", "-S", str(FAKE), "--port", "{port}", *flags),
        health=Health(ready_pattern=READY_LINE if ready_line else None),
        **({"stop": Stop(grace_s=2)} | fields),
    )


def work(job: dict[str, Any]) -> dict[str, Any]:
    """One start: {load_s, ready_line, stamp} -> {lag_s, probes, wait_s, cpu_s}."""
    stamp, seen = Path(job["stamp"]), dict[str, float]()

    def observe(event: Event) -> None:
        match event:
            case events.ChildSpawned():
                seen.update(spawned=time.monotonic(), cpu=time.process_time())
            case events.ChildUp():
                seen.update(up=time.monotonic(), cpu=time.process_time() - seen["cpu"], probes=event.probes)
            case events.ChildReady():
                seen.update(ready=time.monotonic())

    async def run() -> None:
        flags = ("--load-s", str(job["load_s"]), "--stamp", str(stamp))
        profile = fake_profile(*flags, ready_line=job["ready_line"])
        async with anyio.create_task_group() as tasks:
            await tasks.start(supervise, profile, Hooks(observers=(observe,)))
            tasks.cancel_scope.cancel()

    anyio.run(run)
    able = stamped(stamp, "ready")
    stamp.unlink()
    return {
        "lag_s": seen["ready"] - able,
        "load_s": able - seen["spawned"],
        "wait_s": seen["up"] - seen["spawned"],
        "cpu_s": seen["cpu"],
        "probes": seen["probes"],
    }


if __name__ == "__main__":
    answer_jobs(work)
