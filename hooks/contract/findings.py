"""The results of the snapshot contract: findings, and the errors that carry them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["CHECKS", "NOTE", "ContractBroken", "ContractUnseen", "Finding", "Severity", "telling"]

NOTE: Final = "contract: "  # begins a line of the log that holds a finding
Severity = Literal["error", "warning"]

CHECKS: Final = (
    "weights-mapped",
    "stale-file",
    "connection",
    "io-uring",
    "shared-memory",
    "gpu-sharing",
    "in-flight",
    "remounted",
    "command",
    "environment",
    "stray-secret",
)
"""The names of all checks, as `SnapshotContract.waive` takes them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that a snapshot cannot carry.

    Attributes:
        check: one of CHECKS.
        severity: an `error` refuses the seal.
        pid: of the process that holds it; for `in-flight`, of the server.
        what: what is wrong, in a few words.
        where: the file that shows it, such as `/proc/123/maps line 17`, or the URL.
        line: what stands there; empty when it would show a secret.
        fix: what to do.
    """

    check: str
    severity: Severity = "error"
    pid: int
    what: str
    where: str
    line: str = ""
    fix: str

    def __str__(self) -> str:
        seen = f"{self.where}: {' '.join(self.line.split())}" if self.line else self.where
        mild = "warning, " if self.severity == "warning" else ""
        return f"{mild}{self.check}: pid {self.pid} {self.what} ({seen}); {self.fix}"


@dataclass(eq=False)
class ContractBroken(Exception):
    """The process tree holds what a snapshot cannot carry.

    Attributes:
        findings: all of them, warnings included.
    """

    findings: tuple[Finding, ...]

    def __post_init__(self) -> None:
        super().__init__(self.findings)  # pickle rebuilds an exception from its args

    def __str__(self) -> str:
        return "\n    ".join(["the snapshot contract is broken:", *map(str, self.findings)])


@dataclass(eq=False)
class ContractUnseen(Exception):
    """The process tree cannot be read, so the contract cannot be checked.

    Attributes:
        reason: why not, and what to do.
    """

    reason: str

    def __post_init__(self) -> None:
        super().__init__(self.reason)

    def __str__(self) -> str:
        return f"the snapshot contract cannot be checked: {self.reason}"


def telling(say: Callable[[str], None]) -> Callable[[tuple[Finding, ...]], None]:
    """An `on_findings` that writes each finding as a line of the log, warnings too."""

    def tell(findings: tuple[Finding, ...]) -> None:
        for finding in findings:
            say(f"{NOTE}{finding}")

    return tell
