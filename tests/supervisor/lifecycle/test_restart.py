"""The restart budget: how long to wait, and when to give up."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.lifecycle.restart import NoRestart, RestartBudget
from supervisor.profile import Restart

SERVED_S = 1.0  # READY for a while, not for long enough to refill the budget


def budget(**fields: Any) -> RestartBudget:
    plain: dict[str, Any] = {"policy": "on-failure", "jitter": 0.0}
    return RestartBudget(Restart(**(plain | fields)))


def delays(count: int, **fields: Any) -> list[float | NoRestart]:
    one = budget(**fields)
    return [one.next_delay_s(ready_s=SERVED_S) for _ in range(count)]


def test_delays_double_up_to_the_longest() -> None:
    """The first delay is `backoff_s`, each next one twice as long, none longer than `backoff_max_s`."""
    assert delays(6, backoff_s=0.5, backoff_max_s=3, max_restarts=9) == [0.5, 1, 2, 3, 3, 3]


def test_a_spent_budget_says_so() -> None:
    """After `max_restarts` delays comes the reason, and it stays."""
    *granted, first, second = delays(5, max_restarts=3)
    assert all(isinstance(delay, float) for delay in granted)
    assert first == second == NoRestart(reason="the budget of 3 restarts is spent")


def test_no_budget_means_no_restart() -> None:
    """`max_restarts=0` is a policy that never restarts."""
    assert delays(1, max_restarts=0) == [NoRestart(reason="the budget of 0 restarts is spent")]


def test_long_service_refills_the_budget() -> None:
    """A life that was READY for `reset_after_s` makes the next failure the first one again; a shorter one does not."""
    one = budget(max_restarts=2, backoff_s=1, reset_after_s=60)
    assert [one.next_delay_s(ready_s=59.9) for _ in range(2)] == [1, 2]
    assert one.attempt == 2
    assert one.next_delay_s(ready_s=60) == 1
    assert one.attempt == 1


def test_a_crash_loop_ends_early() -> None:
    """Lives in a row that never were READY end it, whatever is left of the budget."""
    one = budget(max_restarts=1000, crash_loop_after=3)
    assert [type(one.next_delay_s(ready_s=None)) for _ in range(2)] == [float, float]
    assert one.next_delay_s(ready_s=None) == NoRestart(reason="crash loop: 3 runs in a row never became ready")


def test_one_ready_life_breaks_a_crash_loop() -> None:
    """The row begins anew after a life that got to READY, however short."""
    one = budget(max_restarts=1000, crash_loop_after=2)
    for ready_s in (None, 0.0, None, 0.0, None):
        assert isinstance(one.next_delay_s(ready_s=ready_s), float)


def test_on_resume_spares_only_a_resume() -> None:
    """Under `on-resume` a failed life is followed by another only while a resume waits for it."""
    one = RestartBudget(Restart(policy="on-resume", max_restarts=1, jitter=0))
    assert "no resume is under way" in str(one.next_delay_s(ready_s=SERVED_S))
    assert one.next_delay_s(ready_s=SERVED_S, resuming=True) == 0.5
    assert "budget of 1" in str(one.next_delay_s(ready_s=SERVED_S, resuming=True))


def test_never_means_never() -> None:
    """The default policy restarts nothing."""
    assert RestartBudget(Restart()).next_delay_s(ready_s=1e6) == NoRestart(reason="the restart policy is 'never'")


@given(
    seed=st.integers(),
    jitter=st.floats(0, 1),
    backoff_s=st.floats(0.001, 100),
    more_s=st.floats(0, 1000),
    lives=st.integers(1, 80),
)
def test_jitter_stays_within_its_part(seed: int, jitter: float, backoff_s: float, more_s: float, lives: int) -> None:
    """A delay differs from its plain value by at most the jitter's part, and is never longer than the longest."""
    backoff_max_s = backoff_s + more_s
    policy = Restart(
        policy="on-failure", backoff_s=backoff_s, backoff_max_s=backoff_max_s, jitter=jitter, max_restarts=1000
    )
    one = RestartBudget(policy, uniform=random.Random(seed))  # noqa: S311  jitter is no secret
    for life in range(lives):
        plain = min(backoff_s * 2.0**life, backoff_max_s)
        delay = one.next_delay_s(ready_s=SERVED_S)
        assert isinstance(delay, float)
        assert plain * (1 - jitter) * 0.999999 <= delay <= min(plain * (1 + jitter) * 1.000001, backoff_max_s)


def test_jitter_spreads() -> None:
    """Servers that failed together do not come back together."""
    policy = Restart(policy="on-failure", jitter=0.5)
    assert len({RestartBudget(policy).next_delay_s(ready_s=SERVED_S) for _ in range(20)}) > 1


@given(st.lists(st.none() | st.floats(0, 1000), max_size=60), st.integers(0, 5), st.integers(1, 5))
def test_a_grant_is_never_beyond_the_limits(lives: list[float | None], most: int, loop: int) -> None:
    """Whatever the history: no more restarts than the budget since it was full, no crash loop longer than allowed."""
    one = budget(max_restarts=most, crash_loop_after=loop, reset_after_s=500)
    granted = row = 0
    for ready_s in lives:
        row = row + 1 if ready_s is None else 0
        granted = 0 if ready_s is not None and ready_s >= 500 else granted
        verdict = one.next_delay_s(ready_s=ready_s)
        assert isinstance(verdict, float) == (row < loop and granted < most)
        granted += isinstance(verdict, float)


@pytest.mark.parametrize("lives", [64, 2000])
def test_a_long_history_does_not_overflow(lives: int) -> None:
    """Doubling for ever stays at the longest delay."""
    assert delays(lives, max_restarts=10_000, backoff_max_s=60)[-1] == 60
