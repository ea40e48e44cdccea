"""What a rehearsal found: times, verdicts, one table, one JSON object."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from hooks.contract.findings import NOTE
from supervisor import events
from supervisor.logs.clean import clean
from supervisor.rehearsal.drift import KINDS as DRIFT
from supervisor.rehearsal.log import LoggedEvent
from supervisor.rehearsal.request import RehearsalRequest

if TYPE_CHECKING:
    from rich.table import Table

    from supervisor.rehearsal.stages import Stage
    from supervisor.steps import Step

__all__ = ["BROKEN", "TIMERS", "RehearsalReport", "is_golden"]

_GOLDEN: Final = (" record", " replay")  # ends the names of golden Steps
_NOTICE: Final = events.Notice.name
_MOVED: Final = {"sleep": events.GpuMemoryOffloaded.name, "wake": events.GpuMemoryReloaded.name}
_SIGNALLED: Final = 128  # exit codes above it mean a signal
TIMERS: Final = (events.ChildUnresponsive.name,)
"""Events of timers that a jump of the clock could set off."""
BROKEN: Final = 5  # the exit code: a snapshot of this server cannot be trusted


def is_golden(step: Step) -> bool:
    """Whether a Step records or replays a golden answer."""
    return step.name.endswith(_GOLDEN)


@dataclass(slots=True, kw_only=True)
class RehearsalReport:
    """A rehearsal, as far as it came. Times are seconds on the host's clock unless a stage measured its own.

    Attributes:
        request: what was asked for.
        suspended_s: how long it lay saved.
        cold_s: from the start of the sandbox until READY, warm; seal_s: the seal; checkpoint_s: the saving.
        image_bytes: what it takes.
        restore_s: from the restore's start until the program went on; resume_s: until verified; answer_s: one answer.
        first_answer_s: from the restore's start until that answer.
        answer: its text.
        healed: why the restored server was replaced by a cold start; empty: it was not.
        strays: secrets of the environment that lie in the image although the server does not need them;
            None: nobody has looked.
        failure, point, status: why the rehearsal ended early, where, and the exit code of that; finished: it did not.
        adapted: what was different about the server, because the sandbox could not be saved otherwise.
        notes: what the contract warned of.
        events: those of the sandbox, in order.
    """

    request: RehearsalRequest
    suspended_s: float = 0.0
    restore_began: float | None = field(default=None, repr=False)
    cold_s: float | None = None
    seal_s: float | None = None
    checkpoint_s: float | None = None
    image_bytes: int | None = None
    restore_s: float | None = None
    resume_s: float | None = None
    answer_s: float | None = None
    first_answer_s: float | None = None
    answer: str = ""
    healed: str = ""
    strays: tuple[str, ...] | None = None
    failure: str = ""
    point: str | None = None
    status: int = 0
    finished: bool = False
    adapted: str = ""
    notes: list[str] = field(default_factory=list)
    events: list[LoggedEvent] = field(default_factory=list, repr=False)

    def see(self, line: str) -> None:
        """Takes a line of the log."""
        if (event := LoggedEvent.of(line)) is not None:
            if event.name != events.ChildLog.name:
                self.events.append(event)
        elif line.startswith(NOTE) and line.removeprefix(NOTE).startswith("warning"):
            self.notes.append(line.removeprefix(NOTE))

    def begin_again(self, adapted: str) -> None:
        """Forgets what was seen: the same is rehearsed once more, with something adapted."""
        self.adapted = adapted
        self.cold_s = self.seal_s = None
        self.notes.clear()
        self.events.clear()

    @property
    def exit_status(self) -> int:
        """0: it can be trusted; 5: contract, golden answer or restore failed; else that of what failed before."""
        if self.status > _SIGNALLED:
            return self.status
        if self.failure and self.point != "before_seal" and (self.image_bytes is None or self.restore_began is None):
            return self.status
        lost = (
            self.request.golden
            and self.steps("before_seal", golden=True)[0] != self.steps("after_resume", golden=True)[0]
        )
        return 0 if self.finished and not (self.healed or self.strays or lost) else BROKEN

    @property
    def speed_up(self) -> float | None:
        """How many times sooner a restore answers than a cold start does, which takes one answer more than READY."""
        if not self.cold_s or not self.first_answer_s or self.answer_s is None or self.healed:
            return None
        return (self.cold_s + self.answer_s) / self.first_answer_s

    @property
    def timers(self) -> tuple[str, ...]:
        """Timers that fired though nothing hung."""
        return tuple(event.name for event in self.events if event.name in TIMERS)

    def steps(self, point: str, *, golden: bool) -> tuple[str, str]:
        """The verdict over the Steps of a point, golden ones or others: (verdict, detail)."""
        mine = [
            event
            for event in self.events
            if event.name in ("step.passed", "step.failed")
            and event.fields.get("point") == point
            and event.fields.get("step", "").endswith(_GOLDEN) is golden
        ]
        for event in mine:
            if event.name == "step.failed":
                return "failed", event.fields.get("reason", "")
        return ("passed", ", ".join(event.fields.get("step", "") for event in mine)) if mine else ("not run", "")

    def asleep(self, point: Literal["sleep", "wake"]) -> tuple[float | None, str]:
        """What putting the sealed engine to sleep took, or waking it: (seconds, its Steps); None: it has none."""
        mine: list[LoggedEvent] = []
        moved: list[str] = []
        sealed = False
        for event in self.events:
            sealed |= event.name == events.ChildSealed.name
            if event.name == events.Starting.name:
                if sealed:  # a cold start in its place
                    break
                mine, moved = [], []
            elif event.name == events.StepPassed.name and event.fields.get("point") == point:
                mine.append(event)
            elif event.name == _MOVED[point]:
                size, kept = (event.fields[name] / 1e9 for name in ("bytes", "stored_bytes"))
                moved = [f"{kept:.2f} of {size:.2f} GB through host memory, the rest zeros"]
        took_s = sum(event.fields["took_s"] for event in mine) if mine else None
        return took_s, ", ".join([*(event.fields["step"] for event in mine), *moved])

    def restored(self, stages: dict[str, Stage]) -> None:
        """Takes the times of a restored run from its stages."""
        began = self.restore_began
        assert began is not None
        for name in ("restored", "resumed", "answered", "stopped"):
            if (stage := stages.get(name)) is None:
                return
            match name:
                case "restored":
                    self.restore_s = stage.at - began
                case "resumed":
                    self.resume_s = stage.took_s
                    self.healed = str(stage.fields["reason"] or "unknown") if stage.fields["healed"] else ""
                case "answered":
                    self.answer_s, self.first_answer_s = stage.took_s, stage.at - began
                    # Half a UTF-16 pair is valid JSON and cannot be written; control characters speak to terminals.
                    self.answer = clean(str(stage.fields["text"]).encode("utf-8", "replace").decode())
                case "stopped":
                    self.finished = True

    def to_json(self) -> str:
        """The report as a JSON object."""
        values: dict[str, Any] = asdict(self)
        del values["request"], values["restore_began"], values["status"]
        values = {"profile": self.request.name, "drift": self.request.drift, **values}
        values |= {"exit_status": self.exit_status, "speed_up": self.speed_up, "timers": self.timers}
        values |= {"sleep_s": self.asleep("sleep")[0], "wake_s": self.asleep("wake")[0]}
        values |= {
            "contract": dict(zip(("verdict", "detail"), self._contract(), strict=True)),
            "golden": dict(zip(("verdict", "detail"), self._golden(), strict=True)),
        }
        return json.dumps(values, indent=2, ensure_ascii=False)

    def table(self) -> Table:
        """The rows for `rich.print`."""
        from rich.table import Table
        from rich.text import Text

        verdict = {0: "can be snapshotted", BROKEN: "not to be trusted"}.get(
            self.exit_status, "not rehearsed to its end"
        )
        table = Table(title=Text(f"{self.request.name}: {verdict}"), title_justify="left", title_style="bold")
        table.add_column("what", no_wrap=True)
        table.add_column("result", justify="right", no_wrap=True)
        table.add_column("detail", overflow="fold", ratio=1)
        for what, value, detail in self._rows():
            colour = {"failed": "red", "passed": "green", "none": "green"}.get(value, "")
            table.add_row(what, Text(value, style=colour), Text(detail))
        return table

    def _rows(self) -> list[tuple[str, str, str]]:
        size = "" if self.image_bytes is None else f"{self.image_bytes / 1e6:.0f} MB"
        speed = "" if self.speed_up is None else f"{self.speed_up:.1f} x"
        restored, saved = self.restore_s is not None, self.image_bytes is not None
        timers = (", ".join(self.timers) or "none") if restored else ""
        strays = "" if self.strays is None else ", ".join(self.strays) or "none"
        (sleep_s, asleep), (wake_s, awake) = self.asleep("sleep"), self.asleep("wake")
        rows = [
            ("cold start", _s(self.cold_s), "from the start of the process until READY, warmed up"),
            ("seal", _s(self.seal_s), "golden answers recorded, contract checked"),
            ("contract", *self._contract()),
            ("sleep", _s(sleep_s), asleep),
            ("checkpoint", _s(self.checkpoint_s), "every process, with its memory, to disk"),
            ("image", size, "what that takes"),
            ("suspended", _s(self.suspended_s if saved else None), "between checkpoint and restore"),
            *(("drift", kind, DRIFT[kind]) for kind in self.request.drift),
            ("restore", _s(self.restore_s), "until the supervisor goes on"),
            ("wake", _s(wake_s), awake),
            ("resume", _s(self.resume_s), "health and golden answers verified"),
            ("golden answer", *self._golden()),
            ("first answer", _s(self.answer_s), self.answer),
            ("restore to answer", _s(self.first_answer_s), ""),
            ("speed-up", speed, "cold start and an answer / restore to answer, on this machine, without a GPU"),
            ("timers fired", timers, "by the jump of the clock"),
            ("stray secrets", strays, "of this environment in the image, besides the server's own"),
            ("cold start instead", "failed" if self.healed else "", self.healed),
            *((("adapted", "event loop", self.adapted),) if self.adapted else ()),
            *(("warning", "contract", note) for note in self.notes),
            *(("notice", "supervisor", event.fields["detail"]) for event in self.events if event.name == _NOTICE),
            ("failure", "failed" if self.failure else "", self._failure()),
        ]
        return [row for row in rows if row[1]]

    def _failure(self) -> str:
        # The contract's own row has it in full already.
        return "refused at the seal" if self.point == "before_seal" else self.failure

    def _contract(self) -> tuple[str, str]:
        if not self.request.contract:
            return "off", "switched off"
        verdict, detail = self.steps("before_seal", golden=False)
        return verdict, "what a snapshot cannot carry is not there" if verdict == "passed" else detail

    def _golden(self) -> tuple[str, str]:
        if not self.request.golden:
            return "off", "switched off"
        verdict, detail = self.steps("before_seal", golden=True)
        return (verdict, detail) if verdict == "failed" else self.steps("after_resume", golden=True)


def _s(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.2f} s"
