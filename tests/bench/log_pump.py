"""The log pump: the throughput of a child that writes as fast as it can, and the longest write at a steady rate.

The child measures its own writes. Ours is the whole supervisor with the command line's JSON log, written to /dev/null;
supervisord and circus capture to a file, which is what they do; the other sides print to /dev/null.
"""

from __future__ import annotations

import json
import signal
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

from bench.rows import Bar, Outcome, Peer, Row, median
from bench.setting import PROGRAMS, Ports, Setting, status_kib
from bench.subject import Subject
from bench.supervisors import CIRCUS, NAMES, SUPERVISORD, running, until_file

KINDS: Final = {
    "lines80": "80-byte lines, one write each",
    "blocks80": "80-byte lines, 64 KiB a write",
    "lines4k": "4 KB lines, one write each",
    "blob": "no line breaks, 64 KiB a write",
}
OURS_ALONE: Final = "ours without its log"
IN_PROCESS: Final = ("cat", "ours", OURS_ALONE, "readline thread", "asyncio readline")
RATE: Final = 50_000  # lines a second
PATIENCE_S: Final = 10.0

Runs = dict[tuple[str, str], list[dict[str, Any]]]


def run(setting: Setting) -> Outcome:
    """Rows for throughput, memory and the longest write."""
    rounds = setting.pick(full=5, quick=1, tiny=1)
    seconds = setting.pick(full=2.0, quick=0.25, tiny=0.05)
    steady_s = setting.pick(full=10.0, quick=1.0, tiny=0.2)
    kinds = setting.pick(full=list(KINDS), quick=list(KINDS), tiny=["lines80", "blob"])
    sides = [side for side in (*IN_PROCESS, *NAMES) if setting.size == "full" or side != OURS_ALONE]
    runs: Runs = defaultdict(list)
    for _ in range(rounds):
        for kind in kinds:
            for side in sides:
                runs[kind, side].append(_once(setting, side, kind, seconds))
    for _ in range(setting.pick(full=3, quick=1, tiny=1)):
        for side in sides:
            runs["steady", side].append(_once(setting, side, "lines80", steady_s, rate=RATE))
    return Outcome(rows=[*(_flood(setting, runs, kind) for kind in kinds), _steady(runs), _memory(runs)])


def _once(
    setting: Setting, side: str, kind: str, seconds: float, *, rate: int = 0, profile: bool = False
) -> dict[str, Any]:
    stats = setting.file("pump/stats")
    port = Ports().next() if side.startswith("ours") else 0
    limit = setting.pick(full=2 << 30, quick=1 << 30, tiny=4 << 20)
    program = (sys.executable, "-I", "-S", str(PROGRAMS / "writer.py"))
    argv = [*program, kind, str(seconds), str(limit), str(rate), str(port), str(stats)]
    if side not in IN_PROCESS:
        return _peer(setting, side, argv, stats, seconds)
    with Subject.ours("pump") as subject:
        result = subject.ask(side=side, argv=argv, port=port, profile=profile)
    return result | (json.loads(stats.read_text()) if stats.exists() else {})


def _peer(setting: Setting, side: str, argv: list[str], stats: Path, seconds: float) -> dict[str, Any]:
    if setting.peer("supervisord" if side == SUPERVISORD else "circusd") is None:
        return {"stalled": "not installed"}
    output = setting.file("pump/output")
    once = {"startsecs": 0, "autorestart": "false"} if side == SUPERVISORD else {"respawn": "False"}
    with running(side, setting, argv, output=output, end=signal.SIGKILL, **once) as pid:
        done = until_file(stats, limit_s=seconds + PATIENCE_S)
        peak_mib = status_kib(pid, "VmHWM") / 1024
    result = json.loads(stats.read_text()) if done else {"stalled": f"not done {PATIENCE_S:g} s late"}
    return result | {"peak_mib": peak_mib}


def _of(runs: Runs, kind: str, side: str, value: str) -> float | None:
    found = [run[value] for run in runs[kind, side] if value in run and "stalled" not in run]
    return median(found) if found else None


def _throughput(runs: Runs, kind: str, side: str) -> float | None:
    found = [run["bytes"] / run["took_s"] / 1e6 for run in runs[kind, side] if run.get("took_s")]
    return median(found) if found else None


def _stalled(runs: Runs, kind: str, side: str) -> str:
    return next((run["stalled"] for run in runs[kind, side] if "stalled" in run), "")


def _flood(setting: Setting, runs: Runs, kind: str) -> Row:
    cat, ours = _throughput(runs, kind, "cat"), _throughput(runs, kind, "ours")
    assert cat and ours
    peers = [
        Peer(name=side, value=None if value is None else value / cat, note=_stalled(runs, kind, side))
        for side in (OURS_ALONE, "readline thread", "asyncio readline", *NAMES)
        if runs[kind, side]
        for value in [_throughput(runs, kind, side)]
    ]
    last = runs[kind, "ours"][-1]
    lines = f", {last['dropped_lines']} of {last['lines']} lines" if last["lines"] else ""
    note = f"cat: {cat:,.0f} MB/s; dropped and reported: {last['dropped_bytes'] / last['bytes']:.0%} of bytes{lines}"
    bar, reason = Bar(limit=0.8, at_least=True), ""
    if not bar.met(ours / cat):
        found = _once(setting, "ours", kind, setting.pick(full=2.0, quick=0.5, tiny=0.05), profile=True)
        busy = median([run["cpu_s"] / (run["took_s"] + 0.3) for run in runs[kind, "ours"]])
        reason = f"ours uses {busy:.0%} of a core; its loop's own time: {found['profile']}"
    return Row(
        benchmark="log pump", what=f"{KINDS[kind]}: throughput / cat's", unit="", ours=ours / cat, peers=tuple(peers),
        bar=bar, more_is_better=True, reason=reason, note=note,
    )  # fmt: skip


def _steady(runs: Runs) -> Row:
    def longest(side: str) -> float | None:
        found = [run["longest_s"] * 1000 for run in runs["steady", side] if "longest_s" in run]
        return max(found) if found else None

    peers = [
        Peer(name=side, value=longest(side), note=_stalled(runs, "steady", side))
        for side in ("cat", "readline thread", "asyncio readline", SUPERVISORD, CIRCUS)
    ]
    ours, bar = longest("ours"), Bar(limit=50)
    last = runs["steady", "ours"][-1]
    rate = last["lines"] / last["took_s"]
    note = f"{rate:,.0f} lines/s were written; dropped and reported: {last['dropped_lines']} of {last['lines']} lines"
    all_of = ", ".join(f"{run['longest_s'] * 1000:.0f} ms" for run in runs["steady", "ours"])
    return Row(
        benchmark="log pump", what=f"longest write at {RATE:,} lines/s", unit="ms", ours=ours, peers=tuple(peers),
        bar=bar, note=note, reason="" if ours is None or bar.met(ours) else f"by run: {all_of}",
    )  # fmt: skip


def _memory(runs: Runs) -> Row:
    def peak(side: str) -> float | None:
        found = [run["peak_mib"] for (_, who), many in runs.items() if who == side for run in many if "peak_mib" in run]
        return max(found) if found else None

    sides = ("readline thread", "asyncio readline", *NAMES)
    peers = [Peer(name=side, value=peak(side), note="" if peak(side) else "not installed") for side in sides]
    return Row(
        benchmark="log pump", what="peak memory of the supervisor, over all floods", unit="MiB", ours=peak("ours"),
        peers=tuple(peers), bar=Bar(limit=100), note="the interpreter included",
    )  # fmt: skip
