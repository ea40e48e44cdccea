"""What must hold after an episode and at the end of a soak; each check returns what is wrong."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Sequence

from conftest import children
from supervisor import events as ev
from supervisor.events import TRANSITIONS, Event, State
from system.soak.record import cookie_of

LEAK_WAIT_S = 5.0


def illegal(steps: Sequence[Event]) -> list[str]:
    """What is wrong with the events of a supervision that has ended: transitions, ends without a start, none at all."""
    wrong: list[str] = []
    state: State | None = None
    running: int | None = None
    torn_down = True
    for event in steps:
        if event.enters is not None:
            if event.enters not in TRANSITIONS[state]:
                wrong.append(f"{event.name} while {state}")
            state = event.enters
        if isinstance(event, ev.ChildSpawned):
            if running is not None or not torn_down:
                wrong.append(f"pid {event.pid} was started while pid {running} was not done with")
            running, torn_down = event.pid, False
        elif isinstance(event, ev.ChildExited):
            if event.pid != running:
                wrong.append(f"pid {event.pid} ended, but {running} was running")
            if (event.exit_code is None) == (event.signal is None):
                wrong.append(f"pid {event.pid} ended by code {event.exit_code} and signal {event.signal}")
            running = None
        elif isinstance(event, ev.TeardownFinished):
            torn_down = True
    if running is not None or not torn_down:
        wrong.append(f"pid {running} was never told to have ended")
    if state not in (State.STOPPED, State.FAILED):
        wrong.append(f"it ended while {state}")
    return wrong


def orphans(cookies: dict[int, bytes]) -> list[str]:
    """Processes of lives that are over: they carry a cookie, or are a child that lives or was not reaped."""
    marks, mine = set(cookies.values()) - {b""}, children()
    found = [f"pid {pid} was not reaped or is alive" for pid in cookies if pid in mine]
    pids = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    return found + [f"pid {pid} carries a cookie of a life that is over" for pid in pids if cookie_of(pid) in marks]


def taken(ports: set[int]) -> list[str]:
    """Ports on which somebody still listens."""
    found = []
    for port in sorted(ports):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                probe.listen()
            except OSError as error:
                found.append(f"port {port}: {error.strerror}")
    return found


def held() -> tuple[Counter[str], Counter[str], set[int]]:
    """Descriptors by kind, threads by name, and child processes of this process."""
    descriptors: Counter[str] = Counter()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            descriptors[os.readlink(f"/proc/self/fd/{fd}").split(":")[0]] += 1
    return descriptors, Counter(thread.name for thread in threading.enumerate()), children()


def leaked(before: tuple[Counter[str], Counter[str], set[int]]) -> list[str]:
    """What this process holds now and did not hold before; it is given a moment to let go."""
    ends = time.monotonic() + LEAK_WAIT_S
    while True:
        now = held()
        found = [f"descriptor {name} x{n}" for name, n in (now[0] - before[0]).items()]
        found += [f"thread {name} x{n}" for name, n in (now[1] - before[1]).items()]
        found += [f"process {pid}" for pid in now[2] - before[2]]
        if not found or time.monotonic() > ends:
            return found
        time.sleep(0.01)
