"""The one emitter: stamps events, keeps the state, refuses illegal transitions, fans out to observers."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from supervisor.events import TRANSITIONS, Event, State
from supervisor.steps import Observer


class Emitter:
    """Call it with an event class and its fields.

    Attributes:
        state: the state that the last event entered; None before the first.
    """

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers
        self._began = time.monotonic()
        self._reported: set[int] = set()
        self.state: State | None = None

    def __call__(self, kind: type[Event], **fields: Any) -> None:
        """Enters the event's state, if it has one, and shows the event to every observer, in order."""
        enters = kind.enters
        if enters is not None:
            if enters not in TRANSITIONS[self.state]:
                raise AssertionError(f"illegal transition {self.state} -> {enters} by {kind.name}")
            self.state = enters
        event = kind(elapsed_s=round(time.monotonic() - self._began, 6), unix_s=time.time(), **fields)
        for observer in self._observers:
            try:
                observer(event)
            except Exception:  # an observer's bug must not end the supervision
                if id(observer) not in self._reported:
                    self._reported.add(id(observer))
                    logging.getLogger("supervisor").exception("observer %r raised on %s", observer, kind.name)
