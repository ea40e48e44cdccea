"""`python -m bench`: runs the benchmarks, prints a table, writes JSON and a plot. See the Makefile."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from bench import cold_start, crash, log_pump, readiness_lag, resume, scale, stop
from bench.rows import Outcome
from bench.setting import BENCH, Setting, machine
from bench.subject import clean_env
from bench.table import table_of

BENCHMARKS: Final[dict[str, Callable[[Setting], Outcome]]] = {
    "readiness_lag": readiness_lag.run,
    "cold_start": cold_start.run,
    "log_pump": log_pump.run,
    "crash": crash.run,
    "stop": stop.run,
    "resume": resume.run,
    "scale": scale.run,
}


def measure(setting: Setting, names: list[str], say: Callable[[str], None]) -> dict[str, Any]:
    """Runs them one after the other; the report holds machine, date, rows and samples."""
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "size": setting.size,
        "machine": machine(),
        "rows": [],
        "samples": {},
    }
    for name in names:
        began = time.monotonic()
        outcome = BENCHMARKS[name](setting)
        say(f"{name}: {time.monotonic() - began:.0f} s")
        report["rows"] += [row.to_dict() for row in outcome.rows]
        report["samples"][name] = {who: [round(x, 6) for x in many] for who, many in outcome.samples.items()}
    return report


def main() -> int:
    """The command line; missed bars do not make it fail, they are shown."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under 2 minutes on 2 cores")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=list(BENCHMARKS))
    parser.add_argument("--peers", type=Path, help="the virtual environment with the peers")
    parser.add_argument("--json", type=Path, default=BENCH / "results.json", help="where the numbers go")
    given = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    with tempfile.TemporaryDirectory(prefix="warmboot-bench-") as scratch:
        setting = Setting(
            size="quick" if given.quick else "full",
            scratch=Path(scratch),
            peers=given.peers.absolute() if given.peers else None,
            rehearse=(sys.executable, "-m", "supervisor", "rehearse", "local"),
        )
        report = measure(setting, given.only, lambda text: console.print(f"[dim]{text}[/]"))
        python = setting.peer("python")
    given.json.parent.mkdir(parents=True, exist_ok=True)
    part = given.json.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    part.replace(given.json)
    console.print(table_of(report))
    if python and report["samples"].get("readiness_lag"):
        picture = given.json.with_suffix(".svg")
        subprocess.run((python, "-I", str(BENCH / "plot.py"), given.json, picture), env=clean_env(), check=True)
        console.print(f"plot: {picture}")
    console.print(f"JSON: {given.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
