"""The GPU table of docs/engines.md, from tests/gpu/results: `PYTHONPATH=tests python -m tools.gpu_table` writes it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import median
from typing import Any, Final

from support import ROOT
from tools.sections import with_section

RESULTS: Final = ROOT / "tests" / "gpu" / "results"
PAGE: Final = ROOT / "docs" / "engines.md"
SECTION: Final = "gpu"
_HEAD: Final = ("engine", "way", "cold start", "GPU memory", "leave", "asleep", "return", "answer", "as before")


def rendered(results: Path = RESULTS) -> str:
    """One row an engine and way: medians of its cycles, seconds and GiB."""
    rows = [f"| {' | '.join(_HEAD)} |", f"|{'---|' * len(_HEAD)}"]
    for path in sorted(results.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        for way, seen in found.items():
            if isinstance(seen, dict):
                cells = (found["engine"], way, *_cells(seen))
                rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _cells(seen: dict[str, Any]) -> tuple[str, ...]:
    cycles = seen["cycles"]

    def seconds(*names: str) -> str:
        return f"{median(sum(cycle[name] for name in names) for cycle in cycles):.2f}"

    same = sum(cycle["to_the_last_bit"] is True and cycle["same_child"] for cycle in cycles)
    return (
        f"{seen['start_s']:.0f} s",
        f"{median(cycle['gpu_mib_before'] for cycle in cycles) / 1024:.1f} GiB",
        f"{seconds('seal_s')} + {seconds('lock_s', 'checkpoint_s')} s",
        f"{median(cycle['gpu_mib_sealed'] for cycle in cycles) / 1024:.1f} GiB",
        f"{seconds('restore_s', 'unlock_s')} + {seconds('resume_s')} s",
        f"{seconds('answer_s')} s",
        f"{same} of {len(cycles)}",
    )


def main() -> int:
    """Writes the page."""
    PAGE.write_text(with_section(PAGE.read_text(encoding="utf-8"), SECTION, rendered()), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
