"""Ours, over many crashes: when each was noticed, on the monotonic clock."""

from __future__ import annotations

import time
from typing import Any

import anyio

from bench.subjects import answer_jobs
from supervisor import Hooks, Profile, Restart, events, supervise
from supervisor.events import Event


def work(job: dict[str, Any]) -> dict[str, Any]:
    """{argv, port, seconds: at least} -> for every child that died: its pid and when that was noticed."""
    pid, ready, noticed = 0, 0, []

    def observe(event: Event) -> None:
        nonlocal pid, ready
        if isinstance(event, events.ChildSpawned):
            pid = event.pid
        elif isinstance(event, events.ChildReady):
            ready = event.pid
        elif isinstance(event, events.Stopping) and not event.asked:
            noticed.append([pid, time.monotonic()])

    # The peers restart at once; the default of ours waits 0.5 s and longer each time, on purpose.
    restart = Restart(policy="on-failure", max_restarts=1_000_000, backoff_s=0.001, backoff_max_s=0.001, jitter=0.0)
    profile = Profile(name="mortal", command=tuple(job["argv"]), port=job["port"], restart=restart)

    async def run() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(supervise, profile, Hooks(observers=(observe,)))
            await anyio.sleep(job["seconds"])
            while not noticed or ready == noticed[0][0]:  # a busy machine may not have seen one replaced in that time
                await anyio.sleep(0.01)
            tasks.cancel_scope.cancel()

    anyio.run(run)
    return {"noticed": noticed}


if __name__ == "__main__":
    answer_jobs(work)
