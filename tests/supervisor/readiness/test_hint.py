"""The ready line: found at once, and no pattern can stop the loop."""

from __future__ import annotations

import re

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.readiness.hint import Hint

pytestmark = pytest.mark.anyio

PATHOLOGICAL = {
    "ambiguous": r"^(a|a)*$",
    "overlapping": r"(a|aa)+$",
    "looks ahead": r"(?=(a+)+!!)a",
    "without a repeat": "(a|a)" * 26 + "b",
}


@pytest.mark.parametrize("pattern", PATHOLOGICAL.values(), ids=PATHOLOGICAL)
async def test_a_pathological_pattern_is_given_up(pattern: str) -> None:
    """A search that would take hours is ended, and after a few of them the pattern is given up, once, with words."""
    notices: list[str] = []
    hint = Hint(pattern, on_give_up=notices.append)
    for _ in range(10):
        hint.see("a" * 1000 + "!")
    assert len(notices) == 1
    assert repr(pattern) in notices[0]
    assert not await hint.sleep(0.001)


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        (r"listening on http|model loaded", "srv: server is listening on http://127.0.0.1:8080"),
        (r"Uvicorn running on .*:\d+ \(Press", "INFO:  Uvicorn running on http://0.0.0.0:8000 (Press CTRL+C to quit)"),
        (r"^\w+ (?:\w+ )+ready$", "the server is now ready"),
        (r"ready\?$", "ready?"),
        (r"up$", "it is up"),
    ],
)
async def test_a_ready_line_is_seen(pattern: str, line: str) -> None:
    """A line that matches ends the pause, and is then forgotten."""
    hint = Hint(pattern)
    hint.see("nothing of the kind")
    assert not await hint.sleep(0.001)
    hint.see(line)
    with anyio.fail_after(20):
        assert await hint.sleep(10_000)
    assert not await hint.sleep(0.001)


@given(st.text("ab.*+?()|$^ ", max_size=8), st.text("ab ", max_size=30))
def test_a_hint_agrees_with_the_search(pattern: str, line: str) -> None:
    """A pattern with repeats means what it means to Python's own `re`."""
    try:
        wanted = bool(pattern) and re.search(pattern, line) is not None
    except re.error:
        return
    hint = Hint(pattern)
    hint.see(line)
    assert hint._event.is_set() == wanted or hint._search is None


async def test_only_the_beginning_of_a_line_is_searched() -> None:
    """A line of a megabyte is no ready line."""
    hint = Hint("ready")
    hint.see("x" * (1 << 20) + "ready")
    assert not await hint.sleep(0.001)
