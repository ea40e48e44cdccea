"""A supervision as commands see it: what it is doing, and its seals and resumes, whoever asks for them."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Literal

from supervisor import events
from supervisor.control.messages import GpuMemoryMoved, Outcome, Status, StepTook
from supervisor.errors import IllegalState
from supervisor.events import State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from supervisor.events import Event
    from supervisor.lifecycle.handle import Supervised
    from supervisor.profile import Profile
    from supervisor.steps import Observer

__all__ = ["Subject"]

Transition = Literal["seal", "resume"]

_Told = events.StepPassed | events.Notice | events.GpuMemoryOffloaded | events.GpuMemoryReloaded

_ENDS_IN: Final[dict[Transition, State]] = {"seal": State.SEALED, "resume": State.READY}
_MOST_NOTICES, _LONGEST_NOTICE = 20, 500


class Subject:
    """An observer of a supervision, and its `task_status`: so it knows the state at any time, and has the handle.

    Args:
        profile: what is supervised.
        observe: gets the notices of `notice`.
    """

    def __init__(self, profile: Profile, observe: Observer) -> None:
        self._observe = observe
        self._began = time.monotonic()
        self._server: Supervised | None = None
        self._state = State.STARTING
        self._profile = profile
        self._since_unix_s = time.time()
        self._pid: int | None = None
        self._url: str | None = None
        self._attempt = 1
        self._under_way: Transition | None = None
        self._seen: list[_Told] = []  # during the transition that is under way

    def started(self, value: Supervised | None = None) -> None:
        """Takes the handle, at the first READY."""
        self._server = value

    def __call__(self, event: Event) -> None:
        """Notes what an event says of the state."""
        if event.enters is not None:
            self._state, self._since_unix_s = event.enters, event.unix_s
        match event:
            case events.Starting():
                if event.attempt == 1:
                    self._began = time.monotonic() - event.elapsed_s
                self._attempt = event.attempt
            case events.ChildSpawned():
                self._pid = event.pid
            case events.ChildReady():
                self._url = event.url
            case events.ChildExited():
                self._pid = None
        if self._under_way and isinstance(event, _Told):
            self._seen.append(event)

    @property
    def status(self) -> Status:
        """What is now."""
        return Status(
            name=self._profile.name,
            supervisor_pid=os.getpid(),
            pid=self._pid,
            state=str(self._state),
            since_unix_s=self._since_unix_s,
            url=self._url,
            attempt=self._attempt,
            under_way=self._under_way,
            engine=self._profile.dialect.engine,
        )

    def masked(self, text: str) -> str:
        """The text without the secrets of the server."""
        return self._server.child.redact(text) if self._server else text

    def notice(self, detail: str) -> None:
        """Logs what is worth knowing once, stamped as the supervision's own events are."""
        notice = events.Notice(detail=detail, elapsed_s=time.monotonic() - self._began, unix_s=time.time())
        if self._under_way:
            self._seen.append(notice)
        self._observe(notice)

    async def make(self, transition: Transition) -> Outcome:
        """Seals or resumes, and says what was done; nothing is done where that is the state already.

        Raises:
            IllegalState: the server was not ready yet, or another transition is under way.
            SupervisorError: as `Supervised.seal` and `resume`.

        Cancelling the call does not undo it.
        """
        server = self._server
        if server is None:
            raise IllegalState(operation=transition, state=str(self._state), allowed="a server that was ready")
        if self._under_way is None and self._state is _ENDS_IN[transition]:
            return self._outcome(transition, already=True, took_s=0.0, before=self._pid)
        before, began = self._pid, time.monotonic()
        with self._noted(transition):
            await (server.seal() if transition == "seal" else server.resume())
        return self._outcome(transition, already=False, took_s=time.monotonic() - began, before=before)

    @contextmanager
    def _noted(self, transition: Transition) -> Iterator[None]:
        if self._under_way is not None:  # the lifecycle refuses the second one, in words
            yield
            return
        self._under_way, self._seen = transition, []
        try:
            yield
        finally:
            self._under_way = None

    def _outcome(self, transition: Transition, *, already: bool, took_s: float, before: int | None) -> Outcome:
        seen = [] if already else self._seen
        passed = [event for event in seen if isinstance(event, events.StepPassed) and event.point != "warmup"]
        notices = [event.detail[:_LONGEST_NOTICE] for event in seen if isinstance(event, events.Notice)]
        moves = events.GpuMemoryOffloaded if transition == "seal" else events.GpuMemoryReloaded
        moved = [event for event in seen if isinstance(event, moves)]
        return Outcome(
            operation=transition,
            already=already,
            took_s=took_s,
            replaced=before != self._pid,
            steps=tuple(StepTook(point=event.point, step=event.step, took_s=event.took_s) for event in passed),
            notices=tuple(notices[:_MOST_NOTICES]),
            gpu_memory=_moved(moved[-1]) if moved else None,  # a self-check moves it before
            status=self.status,
        )


def _moved(event: events.GpuMemoryOffloaded | events.GpuMemoryReloaded) -> GpuMemoryMoved:
    return GpuMemoryMoved(
        bytes=event.bytes, stored_bytes=event.stored_bytes, took_s=event.took_s, gb_per_s=event.gb_per_s
    )
