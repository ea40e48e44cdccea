"""What many tests need: profiles of the fake server, an observer that remembers, waiting, free ports."""

from __future__ import annotations

import inspect
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import anyio

from supervisor import (
    Child,
    Daemon,
    Health,
    Hooks,
    Profile,
    State,
    Stop,
    Supervised,
    SupervisorError,
    Timeouts,
    events,
    supervise,
)
from supervisor.engines.llama_cpp import LLAMA_CPP
from supervisor.events import Event

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
DATA = TESTS / "data"
FAKE = TESTS / "fakes" / "fake_server.py"
READY_LINE = "server is listening on"

LIMIT_S = 30.0  # until something that must happen counts as never happening

E = TypeVar("E", bound=Event)
T = TypeVar("T")
EVENT_KINDS: list[type[Event]] = [
    kind for _, kind in inspect.getmembers(events, inspect.isclass) if issubclass(kind, Event) and kind is not Event
]


def fake_profile(*flags: str, **fields: Any) -> Profile:
    """A profile of the fake server with fault flags; limits are short, fields override."""
    defaults: dict[str, Any] = {
        "name": "fake",
        "command": (sys.executable, "-I", "-S", str(FAKE), "--port", "{port}", *flags),
        "health": Health(ready_pattern=READY_LINE),
        "timeouts": Timeouts(start_s=30, stall_s=30, probe_s=5, step_s=20, resume_s=10),
        "stop": Stop(grace_s=5, drain_s=2),
        "dialect": LLAMA_CPP,
    }
    return Profile(**(defaults | fields))


class Recorder:
    """An observer that keeps every event."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def names(self) -> list[str]:
        """The events' names, log lines and progress left out."""
        noise = {"child.log", "load.progress", "health.waiting"}
        return [event.name for event in self.events if event.name not in noise]

    def of(self, kind: type[E]) -> list[E]:
        """The events of one class, in order."""
        return [event for event in self.events if isinstance(event, kind)]

    def one(self, kind: type[E]) -> E:
        """The only event of its class."""
        (event,) = self.of(kind)
        return event

    def lines(self) -> list[str]:
        """The child's log lines."""
        return [getattr(event, "line", "") for event in self.events if event.name == "child.log"]


def is_in(server: Supervised | Daemon, state: State) -> bool:
    """Whether it is in that state now (a function, because a type checker takes a property for a constant)."""
    return server.state is state


def alive(pid: int | None) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(condition: Callable[[], T], what: str = "", *, limit_s: float = LIMIT_S) -> T:
    """Waits for what another thread or process does; returns what the condition did."""
    ends = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < ends, f"not within {limit_s:g} s: {what or condition}"
        time.sleep(0.005)
    return found


async def until_async(condition: Callable[[], T], what: str = "", *, limit_s: float = LIMIT_S) -> T:
    """`until`, while the loop goes on."""
    ends = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < ends, f"not within {limit_s:g} s: {what or condition}"
        await anyio.sleep(0.005)
    return found


def free_port(host: str = "127.0.0.1") -> int:
    """A port on which nobody listens now."""
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        return int(probe.getsockname()[1])


@dataclass(kw_only=True)
class Do:
    """A Step made of a function, plain or async, that remembers its calls."""

    action: Callable[[Child], Any] = lambda _: None
    name: str = "do"
    deadline_s: float | None = None
    calls: list[Child] = field(default_factory=list)

    async def __call__(self, child: Child) -> None:
        self.calls.append(child)
        result = self.action(child)
        if result is not None:
            await result


async def fate(profile: Profile, hooks: Hooks | None = None) -> tuple[SupervisorError, Recorder]:
    """Supervises until it fails by itself; returns the error and what was seen."""
    seen = Recorder()
    hooks = replace(hooks or Hooks(), observers=(seen,))
    try:
        await supervise(profile, hooks)
    except SupervisorError as error:
        return error, seen
    raise AssertionError("it returned")
