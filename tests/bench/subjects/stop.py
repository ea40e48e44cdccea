"""Ours, from the request to stop until `supervise` has returned."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import anyio

from bench.subjects import answer_jobs
from bench.subjects.lag import fake_profile
from supervisor import Profile, Stop, supervise


def profile_of(server: str, grace_s: float) -> Profile:
    """`engine`, or the fake with a flag."""
    stop = Stop(grace_s=grace_s)
    if server == "engine":
        from supervisor.engines import embedded

        return replace(embedded.profile(), stop=stop)
    return fake_profile(*([server] if server else []), ready_line=True, stop=stop)


def work(job: dict[str, Any]) -> dict[str, Any]:
    """{server, grace_s} -> {took_s}."""
    asked = 0.0

    async def run() -> None:
        nonlocal asked
        async with anyio.create_task_group() as tasks:
            await tasks.start(supervise, profile_of(job["server"], job["grace_s"]))
            await anyio.sleep(0.2)  # idle
            asked = time.monotonic()
            tasks.cancel_scope.cancel()

    anyio.run(run)
    return {"took_s": time.monotonic() - asked}


if __name__ == "__main__":
    answer_jobs(work)
