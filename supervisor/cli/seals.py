"""Seal and resume of a command's server by signals: SIGUSR1 before a snapshot, SIGUSR2 after the restore."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from supervisor import events
from supervisor.errors import IllegalState, SupervisorError

if TYPE_CHECKING:
    from hooks.contract.findings import Finding
    from supervisor.cli.signals import Signals
    from supervisor.lifecycle.handle import Supervised
    from supervisor.steps import Observer, Step

__all__ = ["SealsOnRequest", "with_findings"]


class SealsOnRequest:
    """Gets the handle at the first READY, as `supervise`'s `task_status`, and does what signals ask for."""

    def __init__(self, signals: Signals, observe: Observer) -> None:
        self._signals = signals
        self._observe = observe
        self._server: Supervised | None = None

    def started(self, value: Supervised | None = None) -> None:
        """Takes the handle."""
        self._server = value

    async def listen(self) -> None:
        """Seals and resumes until cancelled. What a seal or resume fails of is in the log by events of its own."""
        while True:
            operation = "seal" if await self._signals.next_ask() == signal.SIGUSR1 else "resume"
            server = self._server
            if server is None:
                refusal = IllegalState(operation=operation, state="starting", allowed="a server that was ready")
                self._observe(events.Notice(detail=refusal.summary, unix_s=time.time()))
                continue
            try:
                await (server.seal() if operation == "seal" else server.resume())
            except IllegalState as error:
                self._observe(events.Notice(detail=error.summary, unix_s=time.time()))
            except SupervisorError:
                pass


def with_findings(step: Step, observe: Observer) -> Step:
    """The snapshot contract as a Step whose warnings are logged as well; any other Step as it is."""
    from hooks.contract import SnapshotContract

    if isinstance(step, SnapshotContract) and step.on_findings is None:
        return replace(step, on_findings=_telling(observe))
    return step


def _telling(observe: Observer) -> Callable[[tuple[Finding, ...]], None]:
    def tell(findings: tuple[Finding, ...]) -> None:
        for finding in findings:
            if finding.severity == "warning":  # errors are in the failure of the Step
                observe(events.Notice(detail=f"contract: {finding}", unix_s=time.time()))

    return tell
