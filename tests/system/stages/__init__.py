"""Where the rows of the fault matrix are played: in this process on either event loop, under a Daemon, or as a process.

Every stage shows its events as mappings, as `supervise --log-format json` prints them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from anyio.from_thread import start_blocking_portal

from conftest import children
from support import until
from system.faults import Fault
from system.stages.command import Command
from system.stages.in_process import Api, InDaemon
from system.stages.left_behind import adopt_orphans, descriptors_held, leftovers, threads_running
from system.stages.scene import Scene

__all__ = ["Scene", "scene"]


@contextmanager
def scene(fault: Fault, tmp: Path, backend: str) -> Iterator[Scene]:
    """A scene for a row, and the proof that it leaves nothing behind: no process, port, descriptor or thread."""
    if fault.prepare:
        fault.prepare(tmp)
    as_process = fault.stage in ("exec", "run", "host")
    before = children(), threads_running(), descriptors_held()
    if as_process:
        adopt_orphans(True)
    try:
        with ExitStack() as stack:
            found: Scene
            if as_process:
                found = Command(fault, tmp)
            elif fault.stage == "daemon":
                found = InDaemon(fault, tmp)
            else:
                found = Api(fault, tmp, stack.enter_context(start_blocking_portal(backend)))
            with found.extras:
                found.begin()
                try:
                    yield found
                finally:
                    if not found.ended and not as_process:
                        found.stop()
                        until(lambda: found.ended)
        left = leftovers(found, *before)
        assert not left, f"left behind: {left}"
    finally:
        if as_process:
            adopt_orphans(False)
