"""Seal and resume of a command's server by signals: SIGUSR1 before a snapshot, SIGUSR2 after the restore."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from supervisor.errors import IllegalState, SupervisorError

if TYPE_CHECKING:
    from hooks.contract.findings import Finding
    from supervisor.cli.signals import Signals
    from supervisor.control.subject import Subject
    from supervisor.steps import Step

__all__ = ["seal_on_signals", "with_findings"]


async def seal_on_signals(signals: Signals, subject: Subject) -> None:
    """Seals and resumes until cancelled. What a seal or resume fails of is in the log by events of its own."""
    while True:
        seal = await signals.next_ask() == signal.SIGUSR1
        try:
            outcome = await subject.make("seal" if seal else "resume")
        except IllegalState as refusal:
            subject.notice(refusal.summary)
        except SupervisorError:
            pass
        else:
            if outcome.already:
                allowed = "ready" if seal else "sealed"
                error = IllegalState(operation=outcome.operation, state=outcome.status.state, allowed=allowed)
                subject.notice(error.summary)


def with_findings(step: Step, notice: Callable[[str], None]) -> Step:
    """The snapshot contract as a Step whose warnings are logged as well; any other Step as it is."""
    from hooks.contract import SnapshotContract

    if isinstance(step, SnapshotContract) and step.on_findings is None:
        return replace(step, on_findings=_telling(notice))
    return step


def _telling(notice: Callable[[str], None]) -> Callable[[tuple[Finding, ...]], None]:
    def tell(findings: tuple[Finding, ...]) -> None:
        for finding in findings:
            if finding.severity == "warning":  # errors are in the failure of the Step
                notice(f"contract: {finding}")

    return tell
