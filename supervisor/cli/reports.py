"""Print the report of a command as a table, and write it as JSON if asked to."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final, Protocol, TextIO

import click

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Shown", "json_option", "show", "write"]

_WIDTH: Final = 140  # of a log, which no terminal limits

json_option = click.option(
    "--json", "out", type=click.File("w", encoding="utf-8", lazy=False), help="Also write JSON; - is stdout."
)


class Shown(Protocol):
    """A report."""

    def to_json(self) -> str: ...

    def table(self) -> Table: ...


def write(report: Shown, out: TextIO | None) -> None:
    """The JSON, where the option says."""
    if out:
        out.write(report.to_json() + "\n")


def show(report: Shown, out: TextIO | None) -> None:
    """The table on stdout, or on stderr when the JSON goes there."""
    from rich.console import Console

    stream = sys.stderr if out is not None and out.name == "<stdout>" else sys.stdout
    Console(file=stream, width=None if stream.isatty() else _WIDTH).print(report.table())
