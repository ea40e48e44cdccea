"""Several engines at a time, each in a process of its own: most of a cold start keeps one core busy, not all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engines.recipe import Recipe
from engines.run import Report, Result

__all__ = ["run_lanes"]


def run_lanes(
    recipes: Sequence[Recipe], lanes: int, options: Sequence[str], say: Callable[[str], None]
) -> list[Report]:
    """Run each recipe by `python -m engines NAME`, so many at a time, the longest first; returns the reports by name.

    Args:
        recipes: what to run.
        lanes: how many at a time.
        options: more arguments of each command.
        say: shows a line of one of them.
    """
    running: list[subprocess.Popen[str]] = []
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}

    def one(recipe: Recipe, file: Path) -> Report:
        argv = [sys.executable, "-m", "engines", recipe.name, "--json", str(file), "--no-table", *options]
        with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            running.append(process)
            assert process.stdout
            last = ""
            for line in process.stdout:
                last = line.rstrip("\n")
                say(last)
        if file.exists():
            return Report.from_json(json.loads(file.read_text(encoding="utf-8"))["engines"][0])
        result = Result(check="start", verdict="failed", detail=f"exit code {process.returncode}: {last}")
        return Report(engine=recipe.name, version="?", install_s=0.0, checks_s=0.0, results=(result,))

    with tempfile.TemporaryDirectory(prefix="warmboot-engines-") as folder, ThreadPoolExecutor(lanes) as pool:
        try:
            longest_first = sorted(recipes, key=lambda recipe: -recipe.start_s * (1 + len(recipe.processes)))
            parts = [(recipe, Path(folder) / f"{number}.json") for number, recipe in enumerate(longest_first)]
            reports = list(pool.map(lambda part: one(*part), parts))
        finally:
            for process in running:
                if process.poll() is None:
                    process.terminate()
            pool.shutdown(cancel_futures=True)
    return sorted(reports, key=lambda report: report.engine)
