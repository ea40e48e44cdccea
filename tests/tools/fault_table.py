"""The README's table of faults, from what a run of the matrix wrote: `python tests/tools/fault_table.py`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, Final

README: Final = Path(__file__).resolve().parents[2] / "README.md"
JSON: Final = Path(__file__).resolve().parent.parent / "system" / "faults.json"

_BEGIN, _END = "<!-- faults:begin -->\n", "<!-- faults:end -->"
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


def section(readme: str) -> str:
    """What stands between the markers."""
    return readme.partition(_BEGIN)[2].partition(_END)[0]


def main() -> None:
    """Puts the table into the README."""
    readme = README.read_text(encoding="utf-8")
    before, _, rest = readme.partition(_BEGIN)
    assert rest, f"README.md lacks {_BEGIN.strip()}"
    table = render(json.loads(JSON.read_text(encoding="utf-8")))
    README.write_text(before + _BEGIN + table + _END + rest.partition(_END)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
