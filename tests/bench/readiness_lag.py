"""Readiness lag: from "the fake server can serve", which it stamps, to `child.ready`. No warmup.

Load times are drawn log-uniformly, so short ones are as frequent as long ones: that flatters loops that begin fast. A
lane draws one load time and gives it to every side at the same moment, each with a server of its own; the peers' loops
watch mirakuru's server, so they cost ours nothing. Few lanes run at once, because servers disturb each other.
"""

from __future__ import annotations

import math
import random
import sys
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field

from bench.peers import LOOPS, healthy
from bench.rows import Bar, Outcome, Peer, Row, median, percentile
from bench.setting import BENCH, FAKE, Ports, Setting
from bench.subject import Subject, clean_env
from bench.subjects.lag import stamped

LINE, POLL, MIRAKURU = "warmboot, ready line", "warmboot, polling", "mirakuru (0.1 s)"


@dataclass(slots=True)
class Seen:
    """Everything that the lanes measured."""

    lags: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    probes: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    waits: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))  # (wait, CPU)
    simulated: bool = False


def run(setting: Setting) -> Outcome:
    """Rows for lag, probes and CPU."""
    longest_s = setting.pick(full=30.0, quick=3.0, tiny=0.3)
    count = setting.pick(full=200, quick=30, tiny=2)
    lanes = setting.pick(full=4, quick=3, tiny=1)
    draw = random.Random(setting.seed)  # noqa: S311  reproducible on purpose
    loads = [math.exp(draw.uniform(math.log(0.2), math.log(longest_s))) for _ in range(count)]
    seen, ports = Seen(simulated=setting.size != "full"), Ports()
    with ThreadPoolExecutor(lanes) as threads:
        work = [threads.submit(_lane, setting, lane, loads[lane::lanes], ports, seen) for lane in range(lanes)]
        for lane in work:
            lane.result()
    return Outcome(rows=_rows(seen, longest_s, lanes), samples=dict(seen.lags))


def _lane(setting: Setting, lane: int, loads: list[float], ports: Ports, seen: Seen) -> None:
    with ExitStack() as stack:
        ours = {name: stack.enter_context(Subject.ours("lag")) for name in (LINE, POLL)}
        python = setting.peer("python")
        mirakuru = None
        if python:
            argv = (python, "-I", str(setting_program("mirakuru_start.py")))
            mirakuru = stack.enter_context(Subject(argv, env=clean_env()))
        loops = stack.enter_context(Subject.ours("loops"))
        for number, load_s in enumerate(loads):
            for name, subject in ours.items():
                stamp = setting.file(f"lag/{lane}-{name}")
                subject.send(load_s=load_s, ready_line=name == LINE, stamp=str(stamp))
            if mirakuru:
                _peers(setting, mirakuru, None if seen.simulated else loops, (lane, load_s, ports.next()), seen)
            for name, subject in ours.items():
                result = subject.result()
                seen.lags[name].append(result["lag_s"])
                seen.probes[name].append(result["probes"] / result["load_s"])
                if number:  # the first wait of a process imports the HTTP client as well
                    seen.waits[name].append((result["wait_s"], result["cpu_s"]))
                if not mirakuru and name == POLL:
                    _replay(seen, result["load_s"], 0.002)


def setting_program(name: str) -> str:
    """A program for the peers' environment."""
    return str(BENCH / "programs" / name)


def _peers(
    setting: Setting, mirakuru: Subject, loops: Subject | None, draw: tuple[int, float, int], seen: Seen
) -> None:
    lane, load_s, port = draw
    stamp = setting.file(f"lag/{lane}-mirakuru")
    flags = ["--port", str(port), "--load-s", str(load_s), "--stamp", str(stamp)]
    mirakuru.send(argv=[sys.executable, "-I", "-S", str(FAKE), *flags], port=port)
    if loops:
        loops.send(port=port)
    noticed = mirakuru.result()
    able = stamped(stamp, "ready")
    seen.lags[MIRAKURU].append(noticed["at"] - able)
    if loops:
        for name, result in loops.result().items():
            seen.lags[name].append(result["at"] - able)
    else:
        began = time.monotonic()
        healthy(port)
        _replay(seen, able - noticed["began"], time.monotonic() - began)
    mirakuru.ask()


def _replay(seen: Seen, ready_s: float, probe_s: float) -> None:
    for loop in LOOPS:
        seen.lags[loop.name].append(loop.replay(ready_s, probe_s=probe_s) - ready_s)


def _rows(seen: Seen, longest_s: float, lanes: int) -> list[Row]:
    others = [*(loop.name for loop in LOOPS), MIRAKURU]
    count = len(seen.lags[POLL])
    note = f"{count} loads, log-uniform from 0.2 to {longest_s:g} s, {lanes} at once"

    def lag(who: str, percent: float, limit_ms: float | None) -> Row:
        peers = tuple(
            Peer(
                name=name,
                value=percentile(seen.lags[name], percent) * 1000 if seen.lags.get(name) else None,
                simulated=seen.simulated and name != MIRAKURU,
                note="" if seen.lags.get(name) else "not installed",
            )
            for name in others
        )
        value = percentile(seen.lags[who], percent) * 1000
        bar = None if limit_ms is None else Bar(limit=limit_ms)
        how = who.removeprefix("warmboot, ")
        worst = ", ".join(f"{lag * 1000:.0f}" for lag in sorted(seen.lags[who])[-3:])
        reason = "" if bar is None or bar.met(value) else f"the three longest of {count}: {worst} ms"
        return Row(
            benchmark="readiness lag", what=f"{how}, p{percent:g}", unit="ms", ours=value, peers=peers, bar=bar,
            reason=reason, note=note,
        )  # fmt: skip

    rows = [lag(LINE, 50, 5), lag(LINE, 99, 25), lag(POLL, 50, None), lag(POLL, 99, 60)]
    for who in (LINE, POLL):
        how = who.removeprefix("warmboot, ")
        waits = seen.waits[who]
        probes = f"{median(seen.probes[who]):.1f} probes a second of loading (median)"
        if waits:
            cpu = 100 * sum(cpu for _, cpu in waits) / sum(wait for wait, _ in waits)
            rows.append(
                Row(
                    benchmark="readiness lag", what=f"{how}, CPU of a core while waiting", unit="%", ours=cpu,
                    bar=Bar(limit=1), note=probes,
                    reason="" if cpu <= 1 else f"{probes}; short loads are nearly all start-up",
                )
            )  # fmt: skip
    return rows
