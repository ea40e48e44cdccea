"""What a soak keeps of an episode: events, ports, and the cookies by which processes are known."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from supervisor import events as ev
from supervisor.events import Event
from supervisor.linux.processes import COOKIE, alive


@dataclass(slots=True)
class Record:
    """An observer that keeps what the checks need, however much the child logs."""

    steps: list[Event] = field(default_factory=list)  # what enters a state or tells an end
    last: deque[str] = field(default_factory=lambda: deque(maxlen=40))
    cookies: dict[int, bytes] = field(default_factory=dict)
    ports: set[int] = field(default_factory=set)
    events: int = 0

    def __call__(self, event: Event) -> None:
        self.events += 1
        if isinstance(event, ev.ChildSpawned):
            self.cookies[event.pid] = first_cookie_of(event.pid)
            self.ports |= {
                int(b) for a, b in zip(event.argv, event.argv[1:], strict=False) if a == "--port" and b.isdigit()
            }
        if event.enters is not None or isinstance(event, ev.ChildExited | ev.TeardownFinished | ev.ChildRestarting):
            self.steps.append(event)
        if not isinstance(event, ev.ChildLog | ev.LoadProgress):
            self.last.append(f"{event.elapsed_s:.3f} {event.name}")

    @property
    def pid(self) -> int | None:
        """Of the newest child, if it is still the one that was started."""
        pid = next(reversed(self.cookies), None)
        return pid if pid is not None and self.cookies[pid] and cookie_of(pid) == self.cookies[pid] else None


def cookie_of(pid: int) -> bytes:
    """The value by which a life's processes are known; empty when there is no such process."""
    with contextlib.suppress(OSError):
        for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if variable.startswith(COOKIE.encode() + b"="):
                return variable
    return b""


def first_cookie_of(pid: int) -> bytes:
    """The same, of a process that was started just now: exec lets go of our pipe before it shows the environment."""
    for _ in range(50):
        if (cookie := cookie_of(pid)) or not alive(pid):
            break
        time.sleep(0.001)
    return cookie
