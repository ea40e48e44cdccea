"""One supervised cold start in a fresh interpreter: {engine} -> its times and its idle memory."""

import time

BEGAN = time.monotonic()  # the interpreter runs; nothing of ours is imported

import supervisor  # noqa: E402

IMPORTED = time.monotonic()

import gc  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import anyio  # noqa: E402

from supervisor.events import ChildReady, ChildSpawned, Event  # noqa: E402


def resident_mib() -> float:
    """What this process holds in memory."""
    rows = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(row for row in rows if row.startswith("VmRSS")).split()[1]) / 1024


async def main() -> None:
    """From the import to READY, idle, and stopped."""
    from supervisor.engines import embedded

    result = {"import_s": IMPORTED - BEGAN}

    def observe(event: Event) -> None:
        if isinstance(event, ChildSpawned):
            result["spawned_s"] = time.monotonic() - BEGAN
        elif isinstance(event, ChildReady):
            result["ready_s"] = time.monotonic() - BEGAN

    async with anyio.create_task_group() as tasks:
        began = time.monotonic()
        profile, hooks = embedded.profile(), supervisor.Hooks(observers=(observe,))
        result["profile_s"] = time.monotonic() - began
        await tasks.start(supervisor.supervise, profile, hooks)
        gc.collect()
        await anyio.sleep(0.2)
        result["idle_mib"] = resident_mib()
        tasks.cancel_scope.cancel()
    sys.stdout.write(json.dumps(result) + "\n")


anyio.run(main)
