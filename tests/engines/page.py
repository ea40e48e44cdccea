"""The table of docs/engines.md, from results.json: `python -m engines.page` writes it, `--check` only compares."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

from tools.sections import with_section

__all__ = ["merged", "rendered"]

RESULTS: Final = Path(__file__).with_name("results.json")
PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "engines.md"
_HEAD: Final = ("engine", "version", "cold start", "sealed", "sleep", "hang noticed", "crash noticed", "stopped")


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Results in which each engine of the new ones takes the place of its old entry."""
    entries = {entry["engine"]: entry for entry in (*old.get("engines", ()), *new["engines"])}
    return {"engines": [entries[name] for name in sorted(entries)]}


def rendered(results: dict[str, Any]) -> str:
    """One row an engine, and below it what each check saw."""
    lines = [
        "Seconds; `make engines ENGINES=NAME` runs an engine again. A lack is one of the machine, not of the engine.",
        "",
        f"| {' | '.join(_HEAD)} |",
        f"|{'---|' * len(_HEAD)}",
    ]
    for entry in results["engines"]:
        cells = [entry["engine"], entry["version"], _start(entry)]
        cells += [_cell(entry, check) for check in ("seal", "sleep", "hang", "crash", "stop")]
        lines.append(f"| {' | '.join(map(_escaped, cells))} |")
    for entry in results["engines"]:
        where = f"{entry['date']}, {entry['machine']}, Python {entry['python']}"
        lines += ["", "<details>", f"<summary>{entry['engine']}: each check ({where})</summary>", ""]
        lines += [
            f"Installed in {entry['install_s']:.0f} s, checked in {entry['checks_s']:.0f} s.",
            "",
            "| check | verdict | seconds | seen |",
            "|---|---|---|---|",
        ]
        for row in entry["results"]:
            cells = [row["check"], row["verdict"], _seconds(row), row["detail"]]
            lines.append(f"| {' | '.join(map(_escaped, cells))} |")
        lines += ["", "</details>"]
    return "\n".join(lines)


def _start(entry: dict[str, Any]) -> str:
    """Until READY: loading and warmup."""
    took = [row["seconds"] for row in entry["results"] if row["check"] in ("load", "warm")]
    return f"{sum(took):.1f}" if len(took) == 2 and None not in took else "failed"


def _cell(entry: dict[str, Any], check: str) -> str:
    said = []
    for row in entry["results"]:
        name, _, variant = row["check"].partition(": ")
        if name == check:
            what = _seconds(row) if row["verdict"] == "passed" else row["verdict"]
            said.append(f"{what} ({variant})" if variant else what)
    return ", ".join(said)


def _seconds(row: dict[str, Any]) -> str:
    return "" if row["seconds"] is None else f"{row['seconds']:.2f}"


def _escaped(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def with_results(page: str, results: dict[str, Any]) -> str:
    """The page with the table between its markers."""
    return with_section(page, "engines", rendered(results))


def main(arguments: list[str]) -> int:
    """Writes, or with `--check` says whether page and results agree."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    now = PAGE.read_text(encoding="utf-8")
    wanted = with_results(now, results)
    if "--check" in arguments:
        if now != wanted:
            sys.stderr.write("docs/engines.md and tests/engines/results.json differ: run `make engines-page`\n")
        return int(now != wanted)
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
