"""The one emitter: stamps events, keeps the state, refuses illegal transitions, fans out to observers."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from supervisor.events import TRANSITIONS, Event, State
from supervisor.steps import Observer


class Emitter:
    """Call it with a new event, its time stamps left out.

    Attributes:
        state: the state that the last event entered; None before the first.
    """

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers
        self._began = time.monotonic()
        self._reported: set[int] = set()
        self.state: State | None = None

    def tell(self, event: Event) -> None:
        """Shows a Step's event to the observers; only the lifecycle's own events enter a state."""
        if event.enters is not None:
            raise ValueError(f"{event.name} enters the state {event.enters}: a Step cannot do that")
        self(event)

    def __call__(self, event: Event) -> None:
        """Enters the event's state, if it has one, and shows the event to every observer, in order."""
        enters = event.enters
        if enters is not None:
            if enters not in TRANSITIONS[self.state]:
                raise AssertionError(f"illegal transition {self.state} -> {enters} by {event.name}")
            self.state = enters
        # In place, because nobody else has seen it yet: a copy would double the cost of every log line.
        object.__setattr__(event, "elapsed_s", round(time.monotonic() - self._began, 6))
        object.__setattr__(event, "unix_s", time.time())
        for observer in self._observers:
            try:
                observer(event)
            except Exception:  # an observer's bug must not end the supervision
                if id(observer) not in self._reported:
                    self._reported.add(id(observer))
                    logging.getLogger("supervisor").exception("observer %r raised on %s", observer, event.name)
