"""What a benchmark says: rows of ours against peers, a bar, and a verdict. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Verdict = Literal["met", "MISSED", "no bar", "not measured"]


def percentile(samples: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: a value that was measured, never one in between."""
    if not samples:
        raise ValueError("no samples")
    rank = math.ceil(percent / 100 * len(samples))
    return sorted(samples)[max(rank, 1) - 1]


def median(samples: Sequence[float]) -> float:
    """The 50th percentile."""
    return percentile(samples, 50)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One peer's value; None: there is none, and `note` says why. `simulated`: its schedule was replayed."""

    name: str
    value: float | None
    simulated: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """What is good enough: at most `limit`, or at least."""

    limit: float
    at_least: bool = False

    def met(self, value: float) -> bool:
        """Whether a value is good enough."""
        return value >= self.limit if self.at_least else value <= self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.limit:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        benchmark, what: which number this is.
        unit: of `ours`, of every peer and of the bar.
        ours: None when it could not be measured; `reason` says why.
        more_is_better: throughput; otherwise less is better.
        reason: why the bar was missed, or why nothing was measured.
        note: how it was measured, where that is not obvious.
    """

    benchmark: str
    what: str
    unit: str
    ours: float | None
    peers: tuple[Peer, ...] = ()
    bar: Bar | None = None
    more_is_better: bool = False
    reason: str = ""
    note: str = ""

    @property
    def verdict(self) -> Verdict:
        """Whether the bar is met."""
        if self.ours is None:
            return "not measured"
        if self.bar is None:
            return "no bar"
        return "met" if self.bar.met(self.ours) else "MISSED"

    def ratio(self, peer: Peer) -> float | None:
        """How many times better ours is than the peer's; below 1: worse. None where a value is missing or zero."""
        if not self.ours or not peer.value:
            return None
        return self.ours / peer.value if self.more_is_better else peer.value / self.ours

    def to_dict(self) -> dict[str, Any]:
        """For JSON, with what follows from the values."""
        peers = [asdict(peer) | {"ratio": _rounded(self.ratio(peer))} for peer in self.peers]
        shown = asdict(self) | {"peers": peers, "verdict": self.verdict}
        return {name: _rounded(value) for name, value in shown.items()}


@dataclass(slots=True, kw_only=True)
class Outcome:
    """A benchmark's rows, and the samples that a plot wants: contender -> values."""

    rows: list[Row]
    samples: dict[str, list[float]] = field(default_factory=dict)


def _rounded(value: Any) -> Any:
    """Five significant digits, which is more than any of this is worth."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    return value
