"""`python -m engines [NAME ...]`: real engines, one after the other, through the lifecycle. See the Makefile."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from engines.environment import clean
from engines.lanes import run_lanes
from engines.page import merged
from engines.recipe import CHECKS, named
from engines.run import Report, check_engine
from engines.table import table_of
from supervisor import SupervisorError


def main(arguments: list[str] | None = None) -> int:
    """The command line; 1 when a check failed, or with --strict when the platform lacks what no recipe declares."""
    parser = argparse.ArgumentParser(prog="python -m engines", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="an engine; default: all")
    parser.add_argument("--only", action="append", default=[], metavar="CHECK", help=f"one of {', '.join(CHECKS)}")
    parser.add_argument("--json", type=Path, help="where the results go; other engines' entries there stay")
    parser.add_argument("--strict", action="store_true", help="only the lacks that a recipe declares are accepted")
    parser.add_argument("--lanes", type=int, default=1, metavar="N", help="so many engines at a time; default: 1")
    parser.add_argument("--no-table", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    console = Console(width=None if sys.stdout.isatty() else 160)
    try:
        recipes = named(given.names)
    except SupervisorError as error:
        console.print(str(error), markup=False)
        return 2
    reports: list[Report] = []
    began = time.monotonic()
    if given.lanes > 1:
        options = [word for check in given.only for word in ("--only", check)]
        show = partial(console.print, markup=False, highlight=False)
        reports = run_lanes(recipes, given.lanes, options, show)
    for recipe in () if given.lanes > 1 else recipes:

        def say(text: str, name: str = recipe.name) -> None:
            console.print(f"[{time.monotonic() - began:5.0f} s] {name}: {text}", markup=False, highlight=False)

        reports.append(check_engine(recipe, say, only=given.only))
    if not given.no_table:
        console.print(table_of(reports))
        console.print(f"{len(reports)} engines in {time.monotonic() - began:.0f} s")
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        old = json.loads(given.json.read_text(encoding="utf-8")) if given.json.exists() else {}
        text = json.dumps(merged(old, _document(reports)), indent=1)
        given.json.write_text(f"{text}\n", encoding="utf-8")
    return int(any(report.failed(strict=given.strict) for report in reports))


def _document(reports: list[Report]) -> dict[str, Any]:
    """What is committed: every result, with machine and date."""
    where = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, {len(os.sched_getaffinity(0))} cores, no GPU",
        "python": platform.python_version(),
    }
    return {"engines": [where | report.to_json() for report in reports]}


if __name__ == "__main__":
    # The engines inherit this environment, and none of it that is ours.
    for ours in set(os.environ) - set(clean(os.environ)):
        del os.environ[ours]
    # As an interrupt, which event loops turn into a cancellation; a background job's shell may have had it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
