"""Crash to noticed, and crash to a new process: the server dies by itself and stamps that, over and over.

All supervisors run side by side for the same time. Ours has noticed when it says so (`child.stopping`); a peer, when it
has reaped the dead process. A new process stamps its first line, so its interpreter's start is included, on all sides.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.rows import Bar, Outcome, Peer, Row, percentile
from bench.setting import PROGRAMS, Ports, Setting
from bench.subject import Subject
from bench.supervisors import CIRCUS, NAMES, SUPERVISORD, running

OURS = "warmboot"
# Both peers take a process that dies within its first second for one that failed to start.
LIVES_S = {OURS: (0.2, 0.5), SUPERVISORD: (1.05, 2.05), CIRCUS: (1.05, 2.05)}
LOOK_S = 0.001


def run(setting: Setting) -> Outcome:
    """Rows for both times."""
    seconds = setting.pick(full=90.0, quick=8.0, tiny=1.0)
    ports = Ports()
    programs = {"supervisord": SUPERVISORD, "circusd": CIRCUS}
    peers = [name for program, name in programs.items() if setting.peer(program)]
    stamps = {name: setting.file(f"crash/{name}") for name in (OURS, *peers)}
    argv = {name: _argv(name, ports.next(), stamp) for name, stamp in stamps.items()}
    with ExitStack() as stack:
        ours = stack.enter_context(Subject.ours("crash"))
        for name in peers:
            options: dict[str, Any] = {"startretries": 1000} if name == SUPERVISORD else {}
            stack.enter_context(running(name, setting, argv[name], **options))
        ours.send(argv=argv[OURS], port=int(argv[OURS][4]), seconds=seconds)
        reaped = _watch({name: stamps[name] for name in peers}, seconds)
        result = ours.result()
    noticed: dict[str, dict[int, float]] = {OURS: {int(pid): at for pid, at in result["noticed"]}, **reaped}
    delays: dict[str, tuple[list[float], list[float]]] = {}
    for name, stamp in stamps.items():
        died, started = _stamps(stamp)
        late = [noticed[name][pid] - at for pid, at in died.items() if pid in noticed[name]]
        # The last death may have no successor.
        again = [min(after) - at for at in died.values() if (after := [new for new in started if new > at])]
        delays[name] = (late, again)
    return Outcome(rows=_rows(delays), samples={name: late for name, (late, _) in delays.items()})


def _argv(name: str, port: int, stamp: Path) -> list[str]:
    program = str(PROGRAMS / "mortal.py")
    argv = [sys.executable, "-I", "-S", program, str(port), str(stamp), *map(str, LIVES_S[name])]
    return [*argv, "asked"] if name == OURS else argv  # READY follows its first answer


def _watch(stamps: dict[str, Path], seconds: float) -> dict[str, dict[int, float]]:
    """When each dead process of the peers was gone from the process table."""
    gone: dict[str, dict[int, float]] = {name: {} for name in stamps}
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        time.sleep(LOOK_S)
        for name, stamp in stamps.items():
            for pid in _stamps(stamp)[0]:
                if pid not in gone[name] and not Path(f"/proc/{pid}").exists():
                    gone[name][pid] = time.monotonic()
    return gone


def _stamps(path: Path) -> tuple[dict[int, float], list[float]]:
    """Deaths by pid, and starts."""
    try:
        rows = [line.split() for line in path.read_text().splitlines()]
    except FileNotFoundError:
        return {}, []
    died = {int(pid): float(at) for word, at, pid in rows if word == "died"}
    return died, [float(at) for word, at, _ in rows if word == "started"]


def _rows(delays: dict[str, tuple[list[float], list[float]]]) -> list[Row]:
    def row(what: str, index: int, percent: float, bar: Bar | None) -> Row:
        ours = delays[OURS][index]
        value = percentile(ours, percent) * 1000 if ours else None
        peers = tuple(_peer(name, delays.get(name, ((), ()))[index], percent) for name in NAMES)
        worst = ", ".join(f"{late * 1000:.1f}" for late in sorted(ours)[-3:])
        missed = bar is not None and value is not None and not bar.met(value)
        return Row(
            benchmark="crash", what=f"{what}, p{percent:g}", unit="ms", ours=value, peers=peers, bar=bar,
            note=f"{len(ours)} crashes", reason=f"the three longest of {len(ours)}: {worst} ms" if missed else "",
        )  # fmt: skip

    return [
        row("noticed", 0, 50, None),
        row("noticed", 0, 99, Bar(limit=10)),
        row("new process runs", 1, 50, None),
        row("new process runs", 1, 99, None),
    ]


def _peer(name: str, samples: Sequence[float], percent: float) -> Peer:
    value = percentile(samples, percent) * 1000 if samples else None
    return Peer(name=name, value=value, note=f"{len(samples)} crashes" if samples else "not installed")
