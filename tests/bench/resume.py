"""Resume overhead: what `resume()` adds to the engine's own answer, from rehearsals in a sandbox.

The Step that asks for the golden answer is the engine's own time; health, ownership and bookkeeping are ours.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.rows import Bar, Outcome, Row, median
from bench.setting import ROOT, Setting

BAR = Bar(limit=50)
WHAT = "resume(), beyond the golden answer"
LIMIT_S = 180


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """What matters of one: seconds."""

    overhead_s: float
    golden_s: float
    cold_s: float
    first_answer_s: float

    @classmethod
    def read(cls, report: dict[str, Any]) -> Rehearsal:
        """From the command's JSON. Raises ValueError when it did not come that far."""
        if report.get("failure") or report.get("healed") or report.get("resume_s") is None:
            raise ValueError(report.get("failure") or report.get("healed") or "the rehearsal has no resume")
        steps = [
            float(event["fields"]["took_s"])
            for event in report["events"]
            if event["name"] == "step.passed" and event["fields"].get("point") == "after_resume"
        ]
        if not steps:
            raise ValueError("no Step ran after the resume")
        return cls(
            overhead_s=report["resume_s"] - sum(steps),
            golden_s=sum(steps),
            cold_s=report["cold_s"],
            first_answer_s=report["first_answer_s"],
        )


def run(setting: Setting) -> Outcome:
    """Rows for the overhead, and for what the snapshot is good for."""
    done: list[Rehearsal] = []
    why_not = "" if setting.rehearse else "left out"
    if setting.rehearse and "--json" not in setting.rehearse and not shutil.which("runsc"):
        why_not = "runsc is not installed (apt-get install runsc)"
    for _ in range(setting.pick(full=5, quick=1, tiny=1)) if not why_not else ():
        try:
            done.append(_rehearse(setting.rehearse, setting.file("resume/report.json")))
        except (ValueError, OSError, subprocess.TimeoutExpired) as error:
            why_not = f"{type(error).__name__}: {error}"
            break
    if not done:
        return Outcome(rows=[Row(benchmark="resume", what=WHAT, unit="ms", ours=None, bar=BAR, reason=why_not)])
    return Outcome(rows=_rows(done))


def _rehearse(command: tuple[str, ...], out: Path) -> Rehearsal:
    # Its exit code says whether the snapshot can be trusted, which the report says better.
    argv = (*command, "--json", str(out))
    result = subprocess.run(argv, cwd=ROOT, check=False, capture_output=True, text=True, timeout=LIMIT_S)
    if not out.exists() or not out.stat().st_size:
        raise ValueError(f"exit code {result.returncode}: {(result.stderr.strip().splitlines() or [''])[-1]}")
    return Rehearsal.read(json.loads(out.read_text(encoding="utf-8")))


def _rows(done: list[Rehearsal]) -> list[Row]:
    overhead = median([one.overhead_s for one in done]) * 1000
    each = ", ".join(f"{one.overhead_s * 1000:.0f}" for one in done)
    golden = median([one.golden_s for one in done])
    speed_up = median([one.cold_s / one.first_answer_s for one in done])
    cold, first = median([one.cold_s for one in done]), median([one.first_answer_s for one in done])
    return [
        Row(
            benchmark="resume", what=WHAT, unit="ms", ours=overhead, bar=BAR,
            note=f"{len(done)} rehearsals; the golden answer itself took {golden:.2f} s",
            reason="" if BAR.met(overhead) else f"each: {each} ms",
        ),
        Row(
            benchmark="resume", what="restore to first answer, times faster than a cold start", unit="x", ours=speed_up,
            more_is_better=True, note=f"{first:.2f} s instead of {cold:.2f} s, in gVisor",
        ),
    ]  # fmt: skip
