"""Scale on one host: so many supervised fakes in one process; what each costs should not grow with their number.

The peers supervise the same fakes without looking at their health. The fakes' own work is on the same cores: 100 of
them become ready within a few seconds, so the lag is that of a busy machine.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from bench.rows import Bar, Outcome, Peer, Row, percentile
from bench.setting import FAKE, Setting, cpu_s, status_kib
from bench.subject import Subject
from bench.supervisors import NAMES, running


def run(setting: Setting) -> Outcome:
    """Rows by number of servers."""
    counts = setting.pick(full=(1, 10, 50, 100), quick=(1, 5, 15), tiny=(1, 2))
    load_s = setting.pick(full=10.0, quick=1.5, tiny=0.1)
    idle_s = setting.pick(full=30.0, quick=2.0, tiny=0.2)
    ours: dict[int, dict[str, Any]] = {}
    peers: dict[tuple[str, int], dict[str, float]] = {}
    for count in counts:
        with Subject.ours("scale") as subject:  # a fresh one: memory that was freed does not all go back
            ours[count] = subject.ask(count=count, load_s=load_s, idle_s=idle_s)
        for name, program in zip(NAMES, ("supervisord", "circusd"), strict=True):
            if count == max(counts) and setting.peer(program):
                peers[name, count] = _peer(setting, name, count, idle_s)
    return Outcome(rows=[row for count in counts for row in _rows(ours, peers, count)] + _growth(ours))


def _peer(setting: Setting, name: str, count: int, idle_s: float) -> dict[str, float]:
    argv = [sys.executable, "-I", "-S", str(FAKE), "--port", "0"]
    with running(name, setting, argv, numprocs=count) as pid:
        children, ends = Path(f"/proc/{pid}/task/{pid}/children"), time.monotonic() + 60
        while len(children.read_text(encoding="utf-8").split()) < count and time.monotonic() < ends:
            time.sleep(0.1)
        time.sleep(1.5)
        cpu, began = cpu_s(pid), time.monotonic()
        time.sleep(idle_s)
        idle = (cpu_s(pid) - cpu) / (time.monotonic() - began)
        return {"idle_cpu": idle, "rss_mib": status_kib(pid, "VmRSS") / 1024}


def _rows(ours: dict[int, dict[str, Any]], peers: dict[tuple[str, int], dict[str, float]], count: int) -> list[Row]:
    found = ours[count]

    def row(what: str, unit: str, value: float, key: str = "", factor: float = 1.0, note: str = "") -> Row:
        rivals = tuple(
            Peer(name=name, value=peers[name, count][key] * factor) if (name, count) in peers
            else Peer(name=name, value=None, note="not installed")
            for name in (NAMES if key and count == max(ours) else ())
        )  # fmt: skip
        title = f"{count} server{'s' * (count > 1)}: {what}"
        return Row(benchmark="scale", what=title, unit=unit, ours=value, peers=rivals, note=note)

    lags = found["lags_s"]
    half = percentile(lags, 50) * 1000
    return [
        row("CPU of a core while idle", "%", found["idle_cpu"] * 100, "idle_cpu", 100, "ours checks health every 10 s"),
        row("memory of the supervisor", "MiB", found["rss_mib"], "rss_mib"),
        row("CPU from start to all READY, each", "ms", found["start_cpu_s"] / count * 1000),
        row("readiness lag, p99", "ms", percentile(lags, 99) * 1000, note=f"p50 {half:.1f} ms"),
        row("CPU to stop, each", "ms", found["stop_cpu_s"] / count * 1000, note=f"all in {found['stop_s']:.2f} s"),
    ]


def _growth(ours: dict[int, dict[str, Any]]) -> list[Row]:
    """What one more server costs at the upper end, against the lower end: 1 is linear."""
    many = max(ours)
    few = min(count for count in ours if count > 1)
    rows = []
    for key, what in (("start_cpu_s", "CPU to start"), ("stop_cpu_s", "CPU to stop")):
        each = {count: ours[count][key] / count for count in ours}
        value = each[many] / each[few]
        rows.append(
            Row(
                benchmark="scale", what=f"{what} one of {many}, against one of {few}", unit="x", ours=value,
                bar=Bar(limit=1.5), note="linear is 1",
                reason="" if value <= 1.5 else "by number: "
                + ", ".join(f"{count}: {cost * 1000:.0f} ms" for count, cost in sorted(each.items())),
            )
        )  # fmt: skip
    return rows
