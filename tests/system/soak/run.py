"""A soak: episodes on several servers at once, their checks, and the report."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
from anyio.from_thread import BlockingPortal, start_blocking_portal

from supervisor import SupervisorError
from supervisor import events as ev
from system.soak.checks import held, illegal, leaked, orphans, taken
from system.soak.memory import bytes_in_use, rss_bytes, slope
from system.soak.plan import ROWS, Plan
from system.soak.record import Record
from system.soak.supervision import OnLoop, OnThread, Supervision

SERVERS = ("api", "api", "api", "daemon", "daemon")
# Memory grows while caches fill, and wavers by megabytes: so it is judged from the second half of a long run.
BYTES_PER_LIFE = 4096.0
MEMORY_MIN_LIVES = 1000


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
        self._folder: str | None = None  # None: the system's own for temporary ones

    def run(self) -> list[str]:
        """Plays until the time is over or something is wrong; returns what is."""
        # Episodes have their folders in one, where what all of them build is built once.
        with tempfile.TemporaryDirectory(prefix="soak-") as folder:
            self._folder = folder
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
        with tempfile.TemporaryDirectory(prefix="episode-", dir=self._folder) as folder:
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
