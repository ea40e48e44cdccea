"""The table of states, the events, and the one emitter between them and the observers."""

from __future__ import annotations

import dataclasses
import logging
import re
from typing import Any, get_args

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from supervisor.emitter import Emitter
from supervisor.events import TRANSITIONS, ChildLog, Event, Failed, Level, Notice, Starting, State, Stopped
from support import EVENT_KINDS as KINDS

ENTERING = [kind for kind in KINDS if kind.enters is not None]


def any_fields(kind: type[Event]) -> dict[str, Any]:
    """Some value for every field of its own."""
    return {field.name: None for field in dataclasses.fields(kind) if field.name not in ("elapsed_s", "unix_s")}


def test_every_state_has_its_row() -> None:
    """The table speaks about every state, and about the beginning."""
    assert set(TRANSITIONS) == {None, *State}


def test_every_state_can_be_entered_and_has_an_event_for_it() -> None:
    """Nothing in the table is out of reach."""
    assert {state for row in TRANSITIONS.values() for state in row} == set(State)
    assert {kind.enters for kind in ENTERING} == set(State)


@pytest.mark.parametrize("kind", ENTERING, ids=lambda kind: kind.name)
def test_what_an_event_enters_is_legal_somewhere(kind: type[Event]) -> None:
    """No event announces a transition that the table never allows."""
    assert any(kind.enters in row for row in TRANSITIONS.values())


def test_every_life_can_end() -> None:
    """From every state there is a way to STOPPED, and nothing leads out of it."""
    ends = {State.STOPPED}
    while more := {state for state in State if state not in ends and TRANSITIONS[state] & ends}:
        ends |= more
    assert ends == set(State)
    assert not TRANSITIONS[State.STOPPED]


def test_names_are_unique_dotted_constants() -> None:
    """An event's name finds it in a log: `noun.verb`, once."""
    names = [kind.name for kind in KINDS]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z]+\.[a-z]+", name) for name in names)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_events_are_frozen_and_described(kind: type[Event]) -> None:
    """Observers share one object, so none of them may change it; its class says what it means."""
    event = kind(elapsed_s=0.0, unix_s=0.0, **any_fields(kind))
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(event, "elapsed_s", 1.0)  # noqa: B010  a plain assignment would not pass the type checker
    assert kind.level in get_args(Level)
    assert kind.__doc__ and not kind.__doc__.startswith(kind.__name__)


class Lifecycle(RuleBasedStateMachine):
    """Drives an emitter along the table, and off it."""

    @initialize()
    def begin(self) -> None:
        self.seen: list[Event] = []
        self.emit = Emitter([self.seen.append])

    @precondition(lambda self: bool(TRANSITIONS[self.emit.state]))
    @rule(data=st.data())
    def legal(self, data: st.DataObject) -> None:
        kinds = [kind for kind in ENTERING if kind.enters in TRANSITIONS[self.emit.state]]
        kind = data.draw(st.sampled_from(kinds))
        self.emit(kind(**any_fields(kind)))
        assert self.emit.state is kind.enters
        assert type(self.seen[-1]) is kind

    @rule(data=st.data())
    def illegal(self, data: st.DataObject) -> None:
        state, count = self.emit.state, len(self.seen)
        kinds = [kind for kind in ENTERING if kind.enters not in TRANSITIONS[state]]
        kind = data.draw(st.sampled_from(kinds))
        with pytest.raises(AssertionError, match=f"illegal transition .* by {re.escape(kind.name)}"):
            self.emit(kind(**any_fields(kind)))
        assert self.emit.state is state
        assert len(self.seen) == count

    @rule(kind=st.sampled_from([kind for kind in KINDS if kind.enters is None]))
    def remark(self, kind: type[Event]) -> None:
        state = self.emit.state
        self.emit(kind(**any_fields(kind)))
        assert self.emit.state is state

    @invariant()
    def time_only_passes(self) -> None:
        times = [event.elapsed_s for event in getattr(self, "seen", [])]
        assert times == sorted(times)
        assert all(time >= 0 for time in times)


TestLifecycle = Lifecycle.TestCase


def test_a_restarted_life_begins_again() -> None:
    """A failed life may be followed by another, a stopped one may not."""
    emit = Emitter([])
    emit(Starting(attempt=1))
    emit(Failed(error="SpawnError", detail=""))
    emit(Starting(attempt=2))
    emit(Stopped())
    with pytest.raises(AssertionError, match=r"illegal transition stopped -> starting by child\.starting"):
        emit(Starting(attempt=3))


def test_a_step_tells_and_enters_nothing() -> None:
    """What a Step tells reaches the observers, stamped; an event that enters a state is the lifecycle's alone."""
    seen: list[Event] = []
    emit = Emitter([seen.append])
    emit.tell(Notice(detail="x"))
    assert [event.name for event in seen] == ["supervision.notice"]
    assert seen[0].unix_s > 0
    with pytest.raises(ValueError, match=r"child\.starting enters the state starting"):
        emit.tell(Starting(attempt=1))
    assert emit.state is None


def test_observers_see_every_event_in_order() -> None:
    """Each observer sees the same objects, first registered first."""
    seen: list[tuple[str, Event]] = []
    emit = Emitter([lambda event: seen.append(("a", event)), lambda event: seen.append(("b", event))])
    emit(Notice(detail="x"))
    (first, event), (second, same) = seen
    assert (first, second) == ("a", "b")
    assert event is same


def test_an_observer_that_raises_is_reported_once_and_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """An observer's bug is told, once, with its traceback, and neither ends the supervision nor hides the event."""

    def broken(event: Event) -> None:
        raise RuntimeError(f"cannot digest {event.name}")

    seen: list[Event] = []
    emit = Emitter([broken, seen.append])
    with caplog.at_level(logging.ERROR, logger="supervisor"):
        for _ in range(3):
            emit(ChildLog(stream="stdout", line="x", line_level="info"))
    assert len(seen) == 3
    (record,) = caplog.records
    assert record.exc_info
    assert "broken" in record.getMessage() and "child.log" in record.getMessage()


def test_two_broken_observers_are_both_reported(caplog: pytest.LogCaptureFixture) -> None:
    """Once means once for each of them."""

    def first(_: Event) -> None:
        raise ValueError

    def second(_: Event) -> None:
        raise ValueError

    emit = Emitter([first, second])
    emit(Notice(detail=""))
    emit(Notice(detail=""))
    assert len(caplog.records) == 2
