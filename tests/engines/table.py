"""The reports as a table on screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.table import Table
from rich.text import Text

from engines.run import Report

__all__ = ["table_of"]

_COLOURS: Final = {"passed": "green", "failed": "bold red", "lacking": "yellow", "none": "dim", "not run": "red"}


def table_of(reports: Sequence[Report]) -> Table:
    """Every engine, its checks, what they took and what they saw."""
    table = Table(title="engines", title_justify="left")
    table.add_column("engine", no_wrap=True)
    table.add_column("check", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("detail", overflow="fold", ratio=1)
    for report in reports:
        times = f"install {report.install_s:.0f} s, checks {report.checks_s:.0f} s"
        table.add_row(Text(report.engine, style="bold"), "", "", "", Text(f"{report.version}; {times}", style="dim"))
        for result in report.results:
            seconds = "" if result.seconds is None else f"{result.seconds:.2f}"
            verdict = Text(result.verdict, style=_COLOURS[result.verdict])
            table.add_row("", result.check, verdict, seconds, Text(result.detail))
        table.add_section()
    return table
