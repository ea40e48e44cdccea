"""Steps that misbehave, or that take something away from the process that supervises."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import anyio

from hooks.warmup.steps import Ping
from supervisor import Child
from supervisor.linux import processes


class Pulse:
    """A liveness Step that leaves a mark each time."""

    name: str = "pulse"
    deadline_s: float | None = 5.0

    def __init__(self, path: Path) -> None:
        self.path = path

    async def __call__(self, child: Child) -> None:
        """Ask, then mark."""
        await Ping()(child)
        with self.path.open("ab") as file:
            file.write(b".")


class Asleep:
    """A Step that never ends by itself."""

    name: str = "asleep"

    def __init__(self, deadline_s: float | None = None) -> None:
        self.deadline_s: float | None = deadline_s

    async def __call__(self, child: Child) -> None:  # noqa: ARG002
        """Sleep."""
        await anyio.sleep_forever()


class Broken:
    """A Step that raises."""

    name: str = "broken"
    deadline_s: float | None = None

    async def __call__(self, child: Child) -> None:  # noqa: ARG002
        """Raise."""
        raise LookupError("on purpose")


async def nothing(_: Child) -> None:
    """A Step's work that is done at once."""


async def look_at_members(child: Child) -> None:
    """Have the child's members remembered, as any look at all of /proc does."""
    assert child.pid and processes.members(child.pid, child.cookie)


class Descriptors:
    """A Step that leaves this process so many descriptors, and no more."""

    name: str = "descriptors"
    deadline_s: float | None = None

    def __init__(self, left: int) -> None:
        self.left = left

    async def __call__(self, child: Child) -> None:  # noqa: ARG002
        """Set the limit."""
        used = os.dup(0)  # the lowest that is free
        os.close(used)
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + self.left, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


class NoProcesses:
    """A Step that leaves this process's user no process and no thread. Root is not bound by it: see `become_nobody`."""

    name: str = "no processes"
    deadline_s: float | None = None

    async def __call__(self, child: Child) -> None:  # noqa: ARG002
        """Set the limit."""
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
