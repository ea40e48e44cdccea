"""Who drains a child that writes: one side, one run. Peak memory and CPU are this process's own."""

from __future__ import annotations

import asyncio
import cProfile
import os
import pstats
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import anyio

from bench.setting import status_kib
from bench.subjects import answer_jobs
from supervisor import Hooks, Profile, SupervisorError, supervise
from supervisor.events import ChildLog, Event, LogDropped
from supervisor.logs.sink import Sink


def ours(argv: list[str], port: int, *, sink: bool) -> dict[str, Any]:
    """The whole supervisor, with the command line's own log into a file that swallows everything, or without a log."""
    kept, dropped = 0, [0, 0]

    def count(event: Event) -> None:
        nonlocal kept
        if isinstance(event, ChildLog):
            kept += 1
        elif isinstance(event, LogDropped):
            dropped[0] += event.lines
            dropped[1] += event.bytes

    profile = Profile(name="writer", command=tuple(argv), port=port)
    with open(os.devnull, "w") as null, Sink(null, "json") as log:  # noqa: PTH123
        observers = (count, log) if sink else (count,)
        try:
            anyio.run(supervise, profile, Hooks(observers=observers))
        except SupervisorError as error:
            ended = type(error).__name__
    return {"kept_lines": kept, "dropped_lines": dropped[0], "dropped_bytes": dropped[1], "ended": ended}


def cat(argv: list[str]) -> dict[str, Any]:
    """The reference: `child | cat > /dev/null`."""
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as child:
        subprocess.run(["cat"], stdin=child.stdout, stdout=subprocess.DEVNULL, check=True)
    return {}


def readline_thread(argv: list[str]) -> dict[str, Any]:
    """A thread that reads text lines and prints them, as scripts do."""
    with open(os.devnull, "w") as null, subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as child:  # noqa: PTH123

        def drain() -> None:
            assert child.stdout
            for line in iter(child.stdout.readline, ""):
                print("[server]", line.rstrip(), file=null)

        thread = threading.Thread(target=drain)
        thread.start()
        thread.join()
    return {}


async def asyncio_readline(argv: list[str]) -> dict[str, Any]:
    """asyncio's stream, line by line."""
    child = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE)
    assert child.stdout
    with open(os.devnull, "w") as null:  # noqa: ASYNC230, PTH123
        try:
            async for line in child.stdout:
                print("[server]", line.decode().rstrip(), file=null)
        except ValueError as error:  # a line over 64 KiB: the reader is gone, and the child blocks
            child.kill()
            return {"stalled": f"the reader died: ValueError: {error}"}
        finally:
            await child.wait()
    return {}


def work(job: dict[str, Any]) -> dict[str, Any]:
    """{side, argv, port, profile} -> what the side counted, its peak memory and CPU."""
    before, cpu = status_kib("self", "VmRSS"), time.process_time()
    profiler = cProfile.Profile() if job.get("profile") else None
    if profiler:
        profiler.enable()
    match job["side"]:
        case "ours":
            result = ours(job["argv"], job["port"], sink=True)
        case "ours without its log":
            result = ours(job["argv"], job["port"], sink=False)
        case "cat":
            result = cat(job["argv"])
        case "readline thread":
            result = readline_thread(job["argv"])
        case _:
            result = asyncio.run(asyncio_readline(job["argv"]))
    if profiler:
        profiler.disable()
        result["profile"] = _hottest(profiler)
    peak = status_kib("self", "VmHWM")
    return result | {"peak_mib": peak / 1024, "grew_mib": (peak - before) / 1024, "cpu_s": time.process_time() - cpu}


def _hottest(profiler: cProfile.Profile) -> str:
    stats: Any = pstats.Stats(profiler)
    total = stats.total_tt or 1.0
    hottest = sorted(stats.stats.items(), key=lambda item: -item[1][2])[:5]
    return ", ".join(f"{100 * own[2] / total:.0f} % {Path(where[0]).stem}.{where[2]}" for where, own in hottest)


if __name__ == "__main__":
    answer_jobs(work)
