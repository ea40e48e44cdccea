"""What happened to a supervised server, printed as it comes."""

from __future__ import annotations

from typing import Final

from prints import say

from supervisor import events
from supervisor.events import Event

TOLD: Final = {
    *("child.up", "child.ready", "child.sealed", "child.resumed", "child.exited", "child.restarting"),
    *("gpu.offloaded", "gpu.reloaded", "child.stopping", "teardown.finished", "step.failed"),
    *("supervision.failed", "supervision.notice"),
}


class Journal:
    """An observer: what happened, told as it comes."""

    def __init__(self) -> None:
        self.steps: dict[str, float] = {}
        self.lines: list[str] = []
        self.told: list[str] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, events.StepPassed | events.StepFailed):
            self.steps[event.step] = round(event.took_s, 3)
        if event.name == "child.log":
            self.lines.append(getattr(event, "line", ""))
        if event.name in TOLD:
            fields = {name: getattr(event, name) for name in event.__dataclass_fields__ if name != "argv"}
            told = {name: round(value, 3) if isinstance(value, float) else value for name, value in fields.items()}
            self.told.append(f"{event.name} {told}")
            say(f"    {self.told[-1]}")
