"""A supervision in progress, wherever it runs."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from supervisor.logs.sink import to_dict
from support import until
from system.faults import Fault


class Scene:
    """A supervision in progress. Subclasses know how to begin, seal, resume and stop it.

    Attributes:
        events: as mappings, in order.
        error: the class of the error that it ended with, and its text; empty when there is none.
        status: the exit code; None: not known yet.
        supervisor: the pid that supervises.
    """

    def __init__(self, fault: Fault, tmp: Path) -> None:
        self.fault = fault
        self.tmp = tmp
        self.events: list[Mapping[str, Any]] = []
        self.error, self.text = "", ""
        self.status: int | None = None
        self.supervisor = os.getpid()
        self.extras = ExitStack()  # what an act needs until the end
        self.fixed_port = 0

    def observe(self, event: Any) -> None:
        """An observer."""
        self.events.append(to_dict(event))

    def named(self, name: str) -> list[Mapping[str, Any]]:
        """The events of a name."""
        return [event for event in list(self.events) if event["event"] == name]

    def wait(self, name: str, count: int = 1) -> Mapping[str, Any]:
        """Waits for the n-th event of a name, unless it has ended before."""
        until(lambda: len(self.named(name)) >= count or self.ended, f"{name} in {self.events[-5:]}")
        found = self.named(name)
        assert len(found) >= count, f"ended without {name}: {self.error} {self.text} {self.events[-5:]}"
        return found[count - 1]

    @property
    def pid(self) -> int:
        """Of the newest child."""
        return int(self.named("child.spawned")[-1]["pid"])

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://127.0.0.1:{self.fixed_port}" if self.fixed_port else str(self.named("child.ready")[-1]["url"])

    @property
    def ports(self) -> set[int]:
        """On which children were told to listen."""
        words = [" ".join(event["argv"]) for event in self.named("child.spawned")]
        return {int(port) for line in words for port in re.findall(r"--port (\d+)", line)}

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.status is not None

    def begin(self) -> None:
        """Starts it, and does not wait."""
        raise NotImplementedError

    def stop(self) -> None:
        """Asks for the end, and does not wait."""
        raise NotImplementedError

    def seal(self) -> None:
        """Seals; a SupervisorError is why not."""
        raise NotImplementedError

    def resume(self) -> None:
        """Resumes; its error, if any, is the supervision's as well."""
        raise NotImplementedError
