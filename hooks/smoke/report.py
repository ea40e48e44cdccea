"""What a smoke test found: rows, a verdict, JSON, and a table for people."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table

__all__ = ["Outcome", "Row", "SmokeReport"]

Outcome = Literal["ok", "failed", "skipped"]

_COLOURS: Final[dict[Outcome, str]] = {"ok": "green", "failed": "bold red", "skipped": "yellow"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One check.

    Attributes:
        name: of the check.
        outcome: `skipped` when the user chose so, or the model is not made for it.
        took_s: seconds that it took.
        detail: what was found, or why it failed or was skipped; redacted.
        evidence: requests and their answers, shortened and redacted.
        numbers: what was measured, by name with its unit.
    """

    name: str
    outcome: Outcome
    took_s: float
    detail: str
    evidence: tuple[str, ...] = ()
    numbers: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SmokeReport:
    """A whole smoke test.

    Attributes:
        url: of the endpoint.
        model: the name that was asked for; None when none was known.
        rows: in the order in which they ran. The first, `wait`, is the wait for the endpoint to come up; when that
            fails, it is the only one.
        took_s: seconds in all.
    """

    url: str
    model: str | None
    rows: tuple[Row, ...]
    took_s: float

    @property
    def ok(self) -> bool:
        """Whether no check failed."""
        return all(row.outcome != "failed" for row in self.rows)

    @property
    def answered(self) -> bool:
        """Whether the endpoint came up at all."""
        return self.rows[0].outcome == "ok"

    @property
    def wait_s(self) -> float:
        """Seconds that the endpoint needed to come up, before the first check."""
        return self.rows[0].took_s

    def to_json(self) -> str:
        """The report as a JSON object with `ok`, `answered`, `url`, `model`, `wait_s`, `took_s` and `rows`."""
        head = {"ok": self.ok, "answered": self.answered, "url": self.url, "model": self.model}
        rows = [_rounded(asdict(row)) for row in self.rows]
        times = _rounded({"wait_s": self.wait_s, "took_s": self.took_s})
        return json.dumps({**head, **times, "rows": rows}, indent=2, ensure_ascii=False)

    def table(self) -> Table:
        """The rows for `rich.print`; evidence is shown where a check failed."""
        from rich.table import Table
        from rich.text import Text

        failed = sum(row.outcome == "failed" for row in self.rows)
        verdict = "all good" if self.ok else f"{failed} of {len(self.rows)} failed"
        title = Text(f"{self.url}  ({self.model or 'model unknown'}): {verdict}, {self.took_s:.1f} s")
        table = Table(title=title, title_justify="left", title_style="bold")
        table.add_column("check", no_wrap=True)
        table.add_column("outcome", no_wrap=True)
        table.add_column("took", justify="right", no_wrap=True)
        table.add_column("detail", overflow="fold", ratio=1)
        for row in self.rows:
            shown = row.evidence if row.outcome == "failed" else ()
            # `Text`, because brackets in a server's answer are not markup.
            detail = Text("\n").join([Text(row.detail), *(Text(f"  {line}", style="dim") for line in shown)])
            took = "" if row.outcome == "skipped" else f"{row.took_s:.2f} s"
            table.add_row(row.name, Text(row.outcome, style=_COLOURS[row.outcome]), took, detail)
        return table


def _rounded(values: dict[str, object]) -> dict[str, object]:
    """Tenths of milliseconds are enough, and easier to read."""
    out: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            out[name] = _rounded(value)
        else:
            out[name] = round(value, 4) if isinstance(value, float) else value
    return out
