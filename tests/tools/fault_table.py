"""The table of docs/faults.md, from what a run of the matrix wrote: `make faults`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, Final

from tools.sections import with_section

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "faults.md"
JSON: Final = Path(__file__).resolve().parent.parent / "system" / "faults.json"

_WITHIN = ((0.1, "< 0.1 s"), (1.0, "0.1-1 s"), (10.0, "1-10 s"))


def within(seconds: float) -> str:
    """A time as an order of magnitude, so that another run makes the same table."""
    return next((words for limit, words in _WITHIN if seconds < limit), "> 10 s")


def render(told: dict[str, Any]) -> str:
    """The table, and what it counts."""
    rows = told["rows"]
    counts = Counter(row["outcome"] for row in rows)
    of = ", ".join(f"{counts[outcome]} {outcome}" for outcome in ("recovered", "refused", "failed", "stopped"))
    lines = [
        "<details>",
        f"<summary>{len(rows)} faults: {of}; none left a process, a port, a descriptor or a thread behind</summary>",
        "",
        "| moment | fault | outcome | error | exit code | within |",
        "|---|---|---|---|---|---|",
        *(
            f"| {row['moment']} | {row['fault']} | {row['outcome']} | {row['error'] and _code(row['error'])} "
            f"| {row['status']} | {within(row['seconds'])} |"
            for row in rows
        ),
        "",
        f"One run on {told['date']}: {told['machine']}, Python {told['python']}.",
        "",
        "</details>",
    ]
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    return f"`{text}`"


def main() -> None:
    """Puts the table into the page."""
    page = PAGE.read_text(encoding="utf-8")
    table = render(json.loads(JSON.read_text(encoding="utf-8")))
    PAGE.write_text(with_section(page, "faults", table), encoding="utf-8")


if __name__ == "__main__":
    main()
