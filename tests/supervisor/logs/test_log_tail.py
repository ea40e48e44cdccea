"""The tail of a log: its last lines, and the errors that noise has pushed out of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.events import Level
from supervisor.logs.tail import Tail


def tail_of(*levels: Level, lines: int, errors: int) -> Tail:
    """A tail to which lines of these levels were added; their texts are their numbers."""
    tail = Tail(lines, errors)
    for i, level in enumerate(levels):
        tail.add(level, str(i))
    return tail


@pytest.mark.parametrize(
    ("levels", "errors", "shown"),
    [
        ((), 2, ()),
        (("info", "error"), 2, ("0", "1")),
        (("info",) * 5, 2, ("2", "3", "4")),
        (("error", "info", "info", "info", "info"), 2, ("0", "(... 1 other lines ...)", "2", "3", "4")),
        (("error", "info", "info", "info"), 2, ("0", "1", "2", "3")),
        (("error",) * 6, 2, ("1", "2", "(... 1 other lines ...)", "3", "4", "5")),
        (("error", "warning", "debug", "info"), 0, ("1", "2", "3")),
    ],
)
def test_errors_that_noise_pushed_out_stand_before_the_last_lines(
    levels: tuple[Level, ...], errors: int, shown: tuple[str, ...]
) -> None:
    """The last errors of those that came earlier, in order and each once, and how many lines are left out."""
    assert tail_of(*levels, lines=3, errors=errors).show() == shown


def test_an_unfinished_line_pushes_an_error_out_too() -> None:
    """While a line is being written it counts as the last one; what leaves for it is kept when it is an error."""
    tail = tail_of("error", "info", "info", lines=3, errors=2)
    assert tail.show(["half"]) == ("0", "1", "2", "half")
    assert tail.show() == ("0", "1", "2")


@given(st.lists(st.sampled_from(["info", "warning", "error"]), max_size=60), st.integers(1, 8), st.integers(0, 8))
def test_no_error_is_shown_twice_and_none_is_lost_for_noise(levels: list[Level], lines: int, errors: int) -> None:
    """Whatever comes: the last lines are whole, at most `errors` errors stand before them, and they are the latest."""
    shown = [text for text in tail_of(*levels, lines=lines, errors=errors).show() if text.isdigit()]
    numbers = list(map(str, range(len(levels))))
    last = numbers[-lines:]
    earlier = [number for number in numbers[: len(levels) - len(last)] if levels[int(number)] == "error"]
    assert shown == [*(earlier[-errors:] if errors else []), *last]
