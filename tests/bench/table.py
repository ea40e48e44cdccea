"""The report as a table on screen."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

COLOURS = {"met": "green", "MISSED": "bold red", "not measured": "yellow", "no bar": "dim"}


def number(value: float | None, unit: str = "") -> str:
    """Three significant digits, and no more than the size asks for."""
    if value is None:
        return "-"
    text = f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{text} {unit}".strip()


def peer_text(peer: dict[str, Any], unit: str) -> str:
    """One peer: value, how many times better ours is, whether it was simulated."""
    if peer["value"] is None:
        return f"{peer['name']}: {peer['note'] or 'not measured'}"
    ratio = "" if peer["ratio"] is None else f" ({number(peer['ratio'])} x)"
    return f"{'~' if peer['simulated'] else ''}{peer['name']}: {number(peer['value'], unit)}{ratio}"


def bar_text(row: dict[str, Any]) -> str:
    """The bar, with its unit."""
    bar = row["bar"]
    return "" if bar is None else f"{'>=' if bar['at_least'] else '<='} {number(bar['limit'], row['unit'])}"


def machine_text(report: dict[str, Any]) -> str:
    """The machine and the date, in one line."""
    m = report["machine"]
    return (
        f"{report['date'][:10]}, {m['cpu']}, {m['cores']} cores, {m['memory_gib']:g} GiB, {m['kernel']}, "
        f"Python {m['python']}"
    )


def table_of(report: dict[str, Any]) -> Table:
    """Every row, its peers, its bar and the verdict, with the reason of what was missed."""
    caption = "(N x): how many times better ours is. ~: the peer's schedule, replayed on the same loads."
    table = Table(title=f"{report['size']} run, {machine_text(report)}", caption=caption, title_justify="left")
    for name, options in {
        "": {"no_wrap": True},
        "what": {"ratio": 3},
        "ours": {"justify": "right", "no_wrap": True},
        "peers": {"ratio": 4},
        "bar": {"no_wrap": True},
        "verdict": {"ratio": 3},
    }.items():
        table.add_column(name, **options)  # type: ignore[arg-type]
    last = ""
    for row in report["rows"]:
        if last not in ("", row["benchmark"]):
            table.add_section()
        verdict = Text(row["verdict"] if row["verdict"] != "no bar" else "", style=COLOURS[row["verdict"]])
        if row["reason"]:
            verdict.append(f": {row['reason']}", style="default")
        what = Text(row["what"])
        if row["note"]:
            what.append(f"\n{row['note']}", style="dim")
        peers = Text("\n".join(peer_text(peer, row["unit"]) for peer in row["peers"]))
        name = row["benchmark"] if row["benchmark"] != last else ""
        table.add_row(name, what, number(row["ours"], row["unit"]), peers, bar_text(row), verdict)
        last = row["benchmark"]
    return table
