"""Stages of a rehearsal, which the program in the sandbox announces: one JSON object a line on stdout.

    starting, ready, sealed | checkpoint and restore | restored, resumed, answered, stopped; or failed, at any point

The entry of a host is `deployed` between the first two, which is no part of a cold start. Between `sealed` and
`restored` the program waits for the file `restored.json` in the folder that both sides see.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio

from supervisor.errors import SupervisorError
from supervisor.timing.racing import race

if TYPE_CHECKING:
    from supervisor.rehearsal.sandbox import Running

__all__ = ["Stage", "StageFailed", "Stages", "announce", "await_restore", "release"]

_RESTORED: Final = "restored.json"
_POLL_S: Final = 0.01


def announce(stage: str, **fields: Any) -> None:
    """Inside: announces that a stage is reached."""
    sys.stdout.write(json.dumps({"stage": stage, **fields}) + "\n")
    sys.stdout.flush()


def await_restore(exchange: Path) -> dict[str, str]:
    """Inside: waits for the restore; returns what changed in the environment. No deadline: it spans the snapshot."""
    while not (file := exchange / _RESTORED).exists():
        time.sleep(_POLL_S)
    changed: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))["env"]
    return changed


def release(exchange: Path, env: dict[str, str]) -> None:
    """Outside: lets the program in the sandbox go on after `await_restore`, with what changed in the environment."""
    draft = exchange / f"{_RESTORED}.draft"
    draft.write_text(json.dumps({"env": env}), encoding="utf-8")
    draft.rename(exchange / _RESTORED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stage that was reached: when, on this side's monotonic clock, and what was said with it."""

    name: str
    at: float
    fields: dict[str, Any] = field(default_factory=dict)

    @property
    def took_s(self) -> float:
        """What the program itself measured; seconds."""
        return float(self.fields.get("took_s", 0.0))


@dataclass(eq=False, repr=False, kw_only=True)
class StageFailed(SupervisorError):
    """The program in the sandbox failed, and said why."""

    during: str
    error: str
    detail: str
    point: str | None
    status: int

    @property
    def summary(self) -> str:
        return f"{self.error} during {self.during!r}: {self.detail}"


class Stages:
    """Outside: the stages as they arrive."""

    def __init__(self) -> None:
        self.reached: dict[str, Stage] = {}
        self._news = anyio.Event()

    def see(self, line: str) -> bool:
        """Takes a line of the program's stdout; returns whether it was a stage."""
        try:
            said = json.loads(line)
            name = said.pop("stage")
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
        self.reached[name] = Stage(name=name, at=time.monotonic(), fields=said)
        self._news.set()
        self._news = anyio.Event()
        return True

    async def wait(self, name: str, running: Running) -> Stage:
        """Waits for a stage.

        Raises:
            StageFailed: the program says that it failed.
            SandboxUnavailable, SandboxFailed: the sandbox ended before.
        """

        async def until_ended() -> None:
            await running.ended.wait()
            await running.drained()

        async def until_reached() -> None:
            while not self.reached.keys() & {name, "failed"}:
                await self._news.wait()

        await race(until_ended, until_reached)
        if (failed := self.reached.get("failed")) is not None:
            raise StageFailed(**failed.fields)
        if name not in self.reached:
            raise running.failure()
        return self.reached[name]
