"""Ours with many servers in one process: {count, load_s, idle_s} -> CPU, memory and lag."""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path
from typing import Any

import anyio

from bench.setting import status_kib
from bench.subjects import answer_jobs
from bench.subjects.lag import fake_profile, stamped
from supervisor import Hooks, supervise
from supervisor.events import ChildReady, Event


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Starts all of them at once, with load times spread over a range, so that not all are ready together."""
    ready: dict[int, float] = {}
    result: dict[str, Any] = {}
    draw = random.Random(job["count"])  # noqa: S311
    with tempfile.TemporaryDirectory() as folder:

        async def run() -> None:
            async with anyio.create_task_group() as tasks:

                async def one(number: int) -> None:
                    def observe(event: Event) -> None:
                        if isinstance(event, ChildReady):
                            ready[number] = time.monotonic()

                    load_s = job["load_s"] * (1 + draw.random())
                    flags = ("--load-s", f"{load_s:.3f}", "--stamp", f"{folder}/{number}")
                    profile = fake_profile(*flags, ready_line=True)
                    await tasks.start(supervise, profile, Hooks(observers=(observe,)))

                cpu = time.process_time()
                async with anyio.create_task_group() as starts:
                    for number in range(job["count"]):
                        starts.start_soon(one, number)
                result["start_cpu_s"] = time.process_time() - cpu
                cpu, began = time.process_time(), time.monotonic()
                await anyio.sleep(job["idle_s"])
                result["idle_cpu"] = (time.process_time() - cpu) / (time.monotonic() - began)
                result["rss_mib"] = status_kib("self", "VmRSS") / 1024
                cpu, began = time.process_time(), time.monotonic()
                tasks.cancel_scope.cancel()
            result["stop_cpu_s"] = time.process_time() - cpu
            result["stop_s"] = time.monotonic() - began

        anyio.run(run)
        result["lags_s"] = [at - stamped(Path(folder, str(number)), "ready") for number, at in ready.items()]
    return result


if __name__ == "__main__":
    answer_jobs(work)
