"""The tables of docs/gpu-memory.md, from tests/gpu/results/memory: `PYTHONPATH=tests python -m tools.gpu_memory_table`.

What is not measured stays out: a way that failed, a section that was not run. Seconds are medians of a way's cycles.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import Any, Final

from support import ROOT
from tools.sections import with_section

RESULTS: Final = ROOT / "tests" / "gpu" / "results" / "memory"
PAGE: Final = ROOT / "docs" / "gpu-memory.md"
SECTIONS: Final = ("measured", "threads")
_ENGINES: Final = {  # section -> what it is called, and its own way of sleeping
    "llama": ("llama.cpp, Gemma shapes", None),
    "vllm": ("vLLM, 8B, CUDA graphs", "sleep level 1"),
    "sglang": ("SGLang, 8B, decode graphs", "memory saver"),
}
_OURS, _DRIVER = "our offload", "the driver alone"
_SLEEPS: Final = ("gpu memory offload", "vllm-sleep", "sglang-release")
_GB: Final = 1e9
_NOTHING: Final = "-"


def read(folder: Path = RESULTS) -> dict[str, Any]:
    """All results by section; a file that comes later in the alphabet wins."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.json")):
        for section, results in json.loads(path.read_text(encoding="utf-8")).items():
            if isinstance(results, dict):
                found.setdefault(section, {}).update(results)
    return found


def rendered(found: Mapping[str, Any]) -> dict[str, str]:
    """The tables, by section of the page."""
    measured = _table(
        ("what", "driver alone", "engine's own", "ours"), [*_engines(found), *_turns(found), *_two(found)]
    )
    head = ("threads", "leave", "leave without checksums", "return", "return without checksums")
    return {"measured": measured, "threads": _table(head, list(_threads(found)))}


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _engines(found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for section, (title, own) in _ENGINES.items():
        seen = found.get(section, {})
        ways = [seen.get(way or "", {}).get("cycles") or () for way in (_DRIVER, own, _OURS)]
        if not any(ways):
            continue
        gib = median(cycle["gpu_mib_before"] for cycles in ways for cycle in cycles) / 1024
        yield f"{title}, {gib:.1f} GiB: leave", *(_seconds(cycles, _leave) for cycles in ways)
        yield "its return to the first answer of 24 tokens", *(_seconds(cycles, _return) for cycles in ways)
        yield "GPU memory left while it sleeps", *(_seconds(cycles, _left_gib, "GiB") for cycles in ways)
        driver, _, ours = ways  # an engine's own pinned memory stands in no account of its process
        kept = (_seconds(driver, _kept_percent, "%"), _NOTHING, _seconds(ours, _kept_percent, "%"))
        yield "kept in host memory, of what it had", *kept
        yield "came back to the last bit", *(_same(cycles) for cycles in ways)
        if cost := seen.get("cost"):
            yield from _cost(cost)


def _seconds(cycles: Any, value: Any, unit: str = "s") -> str:
    return f"{median(map(value, cycles)):.2f} {unit}" if cycles else _NOTHING


def _leave(cycle: Mapping[str, Any]) -> float:
    asleep = sum(cycle["steps"].get(name, 0.0) for name in _SLEEPS)
    return float(asleep + cycle.get("lock_s", 0.0) + cycle.get("checkpoint_s", 0.0))


def _return(cycle: Mapping[str, Any]) -> float:
    return float(cycle.get("restore_s", 0.0) + cycle.get("unlock_s", 0.0) + cycle["resume_s"])


def _left_gib(cycle: Mapping[str, Any]) -> float:
    return float(cycle["gpu_mib_sealed"]) / 1024


def _kept_percent(cycle: Mapping[str, Any]) -> float:
    if kept := cycle.get("kept"):
        return 100 * float(kept["stored_bytes"]) / float(kept["bytes"])
    return 100 * float(cycle["rss_mib_between"] - cycle["rss_mib_before"]) / float(cycle["gpu_mib_before"])


def _same(cycles: Any) -> str:
    same = sum(cycle["to_the_last_bit"] is True and cycle["same_child"] for cycle in cycles)
    return f"{same} of {len(cycles)}" if cycles else _NOTHING


def _cost(cost: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """While awake, with the library against without it: medians of all starts, and of all requests."""
    starts, speeds = {}, {}
    for way, rows in cost.items():
        starts[way] = [row["start_s"] for row in rows if "start_s" in row]
        speeds[way] = [speed for row in rows for speed in row.get("tokens_per_s", ())]
    if all(starts.values()):
        without, with_it = median(starts["without"]), median(starts["with"])
        yield "its cold start", f"{without:.2f} s", _NOTHING, f"{with_it:.2f} s ({with_it - without:+.2f} s)"
    if all(speeds.values()):
        without, with_it = median(speeds["without"]), median(speeds["with"])
        percent = 100 * (with_it / without - 1)
        yield "its tokens a second", f"{without:.1f}", _NOTHING, f"{with_it:.1f} ({percent:+.1f} %)"


def _turns(found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    if rows := found.get("turns", {}).get("turns"):
        took = median(row["switch_s"] for row in rows)
        same = sum(row["same"] is True for row in rows)
        words = f"{took:.2f} s ({same} of {len(rows)} to the last bit)"
        yield "two llama.cpp on one GPU take turns: to the first token", "a reload", _NOTHING, words


def _two(found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    cycles = found.get("two", {}).get("vLLM on two GPUs", {}).get("cycles")
    if cycles:
        leave, back = (
            median(cycle["steps"][f"gpu memory {name}"] for cycle in cycles) for name in ("offload", "reload")
        )
        gib = median(cycle["gpu_mib_before"] for cycle in cycles) / 1024
        title = f"vLLM on two GPUs, {gib:.1f} GiB: out / back, on its host"
        yield title, "fails", _NOTHING, f"{leave:.2f} / {back:.2f} s, {_same(cycles)} to the last bit"


def _threads(found: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Of the bare program in pieces of 2 MiB, zeros found on the GPU: medians."""
    rows: dict[tuple[int, bool], list[Any]] = {}
    for row in found.get("bare", {}).get("sweep", ()):
        if row["chunk_bytes"] == 2 << 20 and row["zeros"] == "gpu" and row["same"] is True:
            rows.setdefault((row["threads"], row["verify"]), []).append(row)
    for threads in sorted({key[0] for key in rows}):
        cells = [
            _moved(rows.get((threads, verify), ()), operation)
            for operation in ("offload", "reload")
            for verify in (True, False)
        ]
        yield str(threads), *cells


def _moved(rows: Any, operation: str) -> str:
    if not rows:
        return _NOTHING
    took = median(row[operation]["seconds"]["total"] for row in rows)
    stored = median(row[operation]["stored_bytes"] for row in rows)
    return f"{took:.2f} s ({stored / took / _GB:.0f} GB/s)"


def main() -> int:
    """Writes the page."""
    page = PAGE.read_text(encoding="utf-8")
    for name, table in rendered(read()).items():
        page = with_section(page, name, table)
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
