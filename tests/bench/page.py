"""The numbers of docs/numbers.md, from results.json: `python -m bench.page` writes them, `--check` only compares."""

from __future__ import annotations

import json
import sys
from typing import Any, Final

from bench.setting import BENCH, ROOT
from bench.table import bar_text, machine_text, number, peer_text
from tools.sections import with_section

RESULTS: Final = BENCH / "results.json"
PAGE: Final = ROOT / "docs" / "numbers.md"


def rendered(report: dict[str, Any]) -> str:
    """The table as Markdown: every row with a bar or a peer."""
    command = "bench" if report["size"] == "full" else f"bench-{report['size']}"
    lines = [
        f"One run of `make {command}` on {machine_text(report)}. In brackets: how many times better ours is.",
        "≈: the peer's schedule, replayed on the same loads.",
        "",
        "| benchmark | what | ours | peers | bar | |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        verdict = {"met": "met", "MISSED": f"**missed**: {row['reason']}", "not measured": row["reason"]}
        cells = (
            row["benchmark"],
            row["what"],
            number(row["ours"], row["unit"]),
            "<br>".join(peer_text(peer, row["unit"]) for peer in row["peers"]),
            bar_text(row),
            verdict.get(row["verdict"], ""),
        )
        lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    for plain, shown in (("|", "\\|"), ("<=", "≤"), (">=", "≥"), ("~", "≈")):
        text = text.replace(plain, shown)
    return text


def with_numbers(page: str, report: dict[str, Any] | None) -> str:
    """The page with the table between its markers; without a report, with a line that says how to get one."""
    return with_section(page, "bench", rendered(report) if report else "No run is committed: `make bench` makes one.")


def main(arguments: list[str]) -> int:
    """Writes, or with `--check` says whether page and results agree."""
    report = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else None
    now = PAGE.read_text(encoding="utf-8")
    wanted = with_numbers(now, report)
    if "--check" in arguments:
        if now != wanted:
            sys.stderr.write("docs/numbers.md and tests/bench/results.json differ: run `make bench-page`\n")
        return int(now != wanted)
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
