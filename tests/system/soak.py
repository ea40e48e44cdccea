"""Random faults from the matrix on a loop: `python tests/system/soak.py SECONDS [--seed N]`.

Several servers at once are supervised in this process, some by `supervise()` on one event loop and some by Daemons.
Each plays episodes: a row of the fault matrix, more faults at random times, and a stop at a random moment. After each
episode its events must be a legal sequence, its port free, and no process of it alive; at the end this process must
hold the descriptors and threads that it held before, and the memory that it uses must not have grown with the lives.

The seed decides what is done and when it is asked for; what the machine makes of that differs between runs.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import anyio
import httpx
from anyio.from_thread import BlockingPortal, start_blocking_portal

from support import ROOT

sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # run as a script as well

from conftest import children  # noqa: E402
from supervisor import Daemon, Hooks, Liveness, Profile, Supervised, SupervisorError, Timeouts, supervise  # noqa: E402
from supervisor import events as ev  # noqa: E402
from supervisor.events import TRANSITIONS, Event, State  # noqa: E402
from supervisor.linux.processes import COOKIE, alive  # noqa: E402
from system.faults import MATRIX, QUICK, SHORT, WATCH, Fault  # noqa: E402

SERVERS = ("api", "api", "api", "daemon", "daemon")
EPISODE_LIMIT_S = 60.0
LEAK_WAIT_S = 5.0
ACTS = ("kill", "term", "freeze", "blink", "seal", "seal", "seal and kill", "ask", "ask", "ask")
# Memory grows while caches fill, and wavers by megabytes: so it is judged from the second half of a long run.
BYTES_PER_LIFE = 4096.0
MEMORY_MIN_LIVES = 1000
_HEAP_FIELDS = (
    "arena",
    "ordblks",
    "smblks",
    "hblks",
    "hblkhd",
    "usmblks",
    "fsmblks",
    "uordblks",
    "fordblks",
    "keepcost",
)
# Rows that this process can play many at once: no settings of the host's, no other server.
ROWS = tuple(fault for fault in MATRIX if fault.stage in ("api", "daemon") and fault.moment != "before spawn")


class Supervision(Protocol):
    """One supervised server, through `supervise()` or a Daemon."""

    def begin(self, profile: Profile, hooks: Hooks) -> None:
        """Starts it; does not wait."""

    def seal(self) -> None:
        """Seals it."""

    def resume(self) -> None:
        """Resumes it."""

    def end(self) -> BaseException | None:
        """Stops it, waits for the end, and returns what it raised."""


class OnLoop:
    """`supervise()` on an event loop that others share."""

    def __init__(self, portal: BlockingPortal) -> None:
        self._portal = portal
        self._scope: Future[anyio.CancelScope] = Future()
        self._server: Supervised | None = None

    def started(self, value: Supervised | None = None) -> None:
        """The lifecycle calls this at READY."""
        self._server = value

    async def _main(self, profile: Profile, hooks: Hooks) -> None:
        with anyio.CancelScope() as scope:
            self._scope.set_result(scope)
            await supervise(profile, hooks, task_status=self)

    def begin(self, profile: Profile, hooks: Hooks) -> None:
        self._future: Future[None] = self._portal.start_task_soon(self._main, profile, hooks)

    def seal(self) -> None:
        if self._server:
            self._portal.call(self._server.seal)

    def resume(self) -> None:
        if self._server:
            self._portal.call(self._server.resume)

    def end(self) -> BaseException | None:
        self._portal.start_task_soon(self._scope.result(EPISODE_LIMIT_S).cancel)
        return self._future.exception(EPISODE_LIMIT_S)


class OnThread:
    """A Daemon."""

    def begin(self, profile: Profile, hooks: Hooks) -> None:
        self._daemon = Daemon(profile, hooks)
        self._thread = threading.Thread(target=self._start)
        self._error: BaseException | None = None
        self._thread.start()

    def _start(self) -> None:
        try:
            self._daemon.start()
        except BaseException as error:  # noqa: BLE001  judged by `end`
            self._error = error

    def seal(self) -> None:
        self._daemon.seal()

    def resume(self) -> None:
        self._daemon.resume()

    def end(self) -> BaseException | None:
        self._daemon.stop()
        self._thread.join(EPISODE_LIMIT_S)
        if self._thread.is_alive():
            return TimeoutError("start did not return")
        return self._error


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """An episode: a row, acts with the pauses before each, and when it is stopped."""

    fault: Fault
    restarts: bool
    acts: tuple[tuple[float, str], ...]
    stop_after_s: float

    @classmethod
    def draw(cls, dice: random.Random) -> Plan:
        """The next one."""
        acts = tuple((dice.uniform(0, 0.4), dice.choice(ACTS)) for _ in range(dice.randrange(5)))
        return cls(fault=dice.choice(ROWS), restarts=dice.random() < 0.7, acts=acts, stop_after_s=dice.uniform(0, 0.8))

    def build(self, tmp: Path, observer: Any) -> tuple[Profile, Hooks]:
        """With limits that suit many short lives."""
        profile, hooks = self.fault.build(tmp)
        own = self.fault.profile
        return replace(
            profile,
            stop=own.get("stop", SHORT),
            timeouts=own.get("timeouts", Timeouts(start_s=10, probe_s=0.3, step_s=5, resume_s=2)),
            liveness=profile.liveness if profile.liveness != Liveness() else WATCH,
            restart=replace(QUICK, max_restarts=1000) if self.restarts else profile.restart,
        ), replace(hooks, observers=(observer,))


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


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the straight line through the points, by least squares; 0 when they do not spread."""
    n = len(points)
    mean_x, mean_y = (sum(point[i] for point in points) / max(n, 1) for i in (0, 1))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def rss_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class _Heap(ctypes.Structure):
    """The C library's struct mallinfo2."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in _HEAP_FIELDS)


def bytes_in_use() -> int:
    """What is allocated: by the C library's count, and of Python's own small blocks, of 64 bytes on average.

    Not the resident memory, where a C library has the count: that also grows with what the heaps of many short-lived
    threads keep for reuse, by tens of kilobytes a life at first.
    """
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return rss_bytes()
    mallinfo2.restype = _Heap
    heap = mallinfo2()
    return int(heap.uordblks + heap.hblkhd) + 64 * sys.getallocatedblocks()


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


class Soak:
    """A run: its counts, and what it found wrong."""

    def __init__(self, seconds: float, seed: int, servers: Sequence[str] = SERVERS) -> None:
        self.seconds, self.seed, self.servers = seconds, seed, servers
        self.counts: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.memory: list[tuple[float, float]] = []  # (lives, bytes)
        self._lock = threading.Lock()
        self._ends_at = 0.0

    def run(self) -> list[str]:
        """Plays until the time is over or something is wrong; returns what is."""
        self._play(0.0)  # lazy imports, and whatever else is opened once
        before = held()
        self._play(self.seconds)
        self.wrong += leaked(before)
        self.wrong += self.grown()
        return self.wrong

    def grown(self) -> list[str]:
        """Whether memory grows with the lives, once there were enough of them to tell."""
        if self.counts["lives"] < MEMORY_MIN_LIVES or self.growth <= BYTES_PER_LIFE:
            return []
        return [f"memory grows by {self.growth:.0f} bytes a life, more than {BYTES_PER_LIFE:.0f}"]

    @property
    def growth(self) -> float:
        """Bytes of memory a life, in the second half."""
        return slope(self.memory[len(self.memory) // 2 :])

    def _play(self, seconds: float) -> None:
        self._ends_at = time.monotonic() + seconds
        with start_blocking_portal("asyncio") as portal:
            actors = [
                threading.Thread(target=self._act, args=(slot, kind, portal), name=f"actor-{slot}")
                for slot, kind in enumerate(self.servers)
            ]
            for actor in actors:
                actor.start()
            while busy := [actor for actor in actors if actor.is_alive()]:
                busy[0].join(0.5)
                self.memory.append((float(self.counts["lives"]), float(bytes_in_use())))

    def _act(self, slot: int, kind: str, portal: BlockingPortal) -> None:
        dice = random.Random(f"{self.seed}-{slot}")  # noqa: S311  not for secrets
        while True:
            try:
                self.episode(Plan.draw(dice), OnLoop(portal) if kind == "api" else OnThread(), dice)
            except Exception as error:  # noqa: BLE001  a defect of this program is no success
                self.wrong.append(f"actor {slot}: {error!r}")
            if self.wrong or time.monotonic() >= self._ends_at:
                return

    def episode(self, plan: Plan, server: Supervision, dice: random.Random) -> None:
        """Plays one, checks it, counts it."""
        record = Record()
        done: Counter[str] = Counter([f"{plan.fault.moment}: {plan.fault.name}"])
        with tempfile.TemporaryDirectory(prefix="soak-") as folder:
            tmp = Path(folder)
            if plan.fault.prepare:
                plan.fault.prepare(tmp)
            server.begin(*plan.build(tmp, record))
            for pause_s, act in plan.acts:
                time.sleep(pause_s)
                if self._do(act, record, server, dice):
                    done[f"act: {act}"] += 1
            time.sleep(plan.stop_after_s)
            try:
                error = server.end()
            except TimeoutError as late:
                error = late
        wrong = [*illegal(record.steps), *orphans(record.cookies), *taken(record.ports)]
        if error is not None and not isinstance(error, SupervisorError):
            wrong.append(f"it raised {error!r}")
        with self._lock:
            self.faults.update(done)
            self.ends[type(error).__name__ if error else "stopped"] += 1
            self.counts["episodes"] += 1
            self.counts["lives"] += len(record.cookies)
            self.counts["events"] += record.events
            self.counts["restarts"] += sum(isinstance(event, ev.ChildRestarting) for event in record.steps)
            self.counts["ready"] += sum(isinstance(event, ev.ChildReady) for event in record.steps)
            if wrong:
                self.wrong += [f"{plan.fault.name}, acts {[act for _, act in plan.acts]}: {what}" for what in wrong]
                self.wrong += [f"    {line}" for line in record.last]

    def _do(self, act: str, record: Record, server: Supervision, dice: random.Random) -> bool:
        """One act on whatever is there now; returns whether there was anything."""
        how_long_s = dice.uniform(0.01, 0.3)  # drawn always, so that the dice fall the same in every run
        if act.startswith("seal"):
            with contextlib.suppress(SupervisorError):
                server.seal()
                time.sleep(how_long_s / 3)
                if act == "seal and kill":
                    _signal(record, signal.SIGKILL)
                server.resume()
                return True
            return False
        if act == "ask":
            return bool(record.ports) and _ask(max(record.ports))
        number = {"kill": signal.SIGKILL, "term": signal.SIGTERM}.get(act, signal.SIGSTOP)
        there = _signal(record, number)
        if act == "blink":
            time.sleep(how_long_s)
            _signal(record, signal.SIGCONT)
        return there

    def report(self) -> Iterator[str]:
        """What a person reads."""
        c = self.counts
        yield f"seed {self.seed}, {self.seconds:g} s, {len(self.servers)} servers at once ({', '.join(self.servers)})"
        yield ", ".join(f"{c[name]} {name}" for name in ("episodes", "lives", "ready", "restarts", "events"))
        yield "ends: " + ", ".join(f"{name} {n}" for name, n in self.ends.most_common())
        acts = {name: n for name, n in self.faults.items() if name.startswith("act: ")}
        yield "acts: " + ", ".join(f"{name[5:]} {n}" for name, n in sorted(acts.items()))
        moments = Counter({m: sum(n for k, n in self.faults.items() if k.startswith(f"{m}: ")) for m in _moments()})
        kinds = len(self.faults) - len(acts)
        yield f"rows of the matrix: {kinds} of {len(ROWS)}; " + ", ".join(f"{name} {n}" for name, n in moments.items())
        judged = "" if c["lives"] >= MEMORY_MIN_LIVES else ", not judged in so few lives"
        in_use = f"{self.growth:+.0f} bytes in use a life (bound {BYTES_PER_LIFE:.0f}{judged})"
        yield f"memory: {in_use}, resident {rss_bytes() / 1e6:.1f} MB"


def _moments() -> list[str]:
    return list(dict.fromkeys(fault.moment for fault in ROWS))


def _signal(record: Record, number: signal.Signals) -> bool:
    pid = record.pid
    if pid is None:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    return True


def _ask(port: int) -> bool:
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    with contextlib.suppress(httpx.HTTPError):
        # No CA bundle is read for plain HTTP: it would cost 40 ms.
        httpx.post(url, json=body, trust_env=False, verify=False, timeout=0.5)  # noqa: S501
        return True
    return False


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 when nothing was wrong."""
    parser = argparse.ArgumentParser(description="Random faults on a loop.")
    parser.add_argument("seconds", type=float, nargs="?", default=600.0)
    parser.add_argument("--seed", type=int, default=None, help="repeats a run")
    given = parser.parse_args(argv)
    seed = random.SystemRandom().randrange(1_000_000) if given.seed is None else given.seed
    print(f"soak: seed {seed}, {given.seconds:g} s", flush=True)  # noqa: T201
    soak = Soak(given.seconds, seed)
    wrong = soak.run()
    print("\n".join(soak.report()))  # noqa: T201
    if wrong:
        print("\n".join([f"soak: WRONG, repeat with --seed {seed}", *wrong]))  # noqa: T201
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
