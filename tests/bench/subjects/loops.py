"""The peers' loops, all at once against one server, each in a thread: they sleep nearly all the time."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from bench.peers import LOOPS, Loop, healthy
from bench.subjects import answer_jobs


def work(job: dict[str, Any]) -> dict[str, Any]:
    """{port} -> by loop: when it noticed, on the monotonic clock, and its probes."""
    probe = partial(healthy, job["port"])

    def notice(loop: Loop) -> dict[str, float]:
        probes = loop.wait(probe)
        return {"at": time.monotonic(), "probes": probes}

    with ThreadPoolExecutor(len(LOOPS)) as threads:
        return dict(zip((loop.name for loop in LOOPS), threads.map(notice, LOOPS), strict=True))


if __name__ == "__main__":
    answer_jobs(work)
