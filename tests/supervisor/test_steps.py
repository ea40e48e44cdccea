"""Steps and observers, and what `Hooks` accepts."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from supervisor import Child, Hooks, Profile, Redactor, step
from supervisor.errors import ProfileError

POINTS = [point.name for point in fields(Hooks) if point.name != "observers"]


async def nothing(_: Child) -> None:
    """A plain function that a Step may be made of."""


class Nameless:
    """Has no name."""

    deadline_s = None

    async def __call__(self, child: Child) -> None: ...


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize(
    ("given", "words"),
    [
        (step("alone", nothing), "a tuple of Steps"),
        ([step("listed", nothing)], "a tuple of Steps"),
        ((nothing,), r'step\("name", function\)'),
        ((Nameless(),), "a Step"),
        (("text",), "a Step"),
        ((None,), "a Step"),
        ((step("late", nothing, deadline_s=0),), "seconds over 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_tuple_of_steps_is_a_wrong_setting(point: str, given: Any, words: str) -> None:
    """A Step that is no Step, or stands alone, is refused in words before anything is started."""
    with pytest.raises(ProfileError, match=words) as caught:
        Hooks(**{point: given})
    assert caught.value.field.startswith(f"Hooks.{point}")


@pytest.mark.parametrize("given", [print, [print], (None,)])
def test_observers_are_a_tuple_of_callables(given: Any) -> None:
    """An observer that cannot be called is refused at construction."""
    with pytest.raises(ProfileError, match=r"Hooks\.observers"):
        Hooks(observers=given)


@pytest.mark.anyio
async def test_a_step_of_a_function() -> None:
    """`step` gives a plain async function a name and, if wanted, a deadline; it gets the Child."""
    seen: list[Child] = []

    async def look(child: Child) -> None:
        seen.append(child)

    made = step("look", look, deadline_s=3)
    profile = Profile(name="x", command=("/bin/true", "{port}"))
    child = Child(profile=profile, port=1, pid=None, redact=Redactor(()))
    await made(child)
    assert (made.name, made.deadline_s, seen) == ("look", 3, [child])
    assert Hooks(warmup=(made,)).warmup == (made,)


def test_a_step_is_made_of_a_function() -> None:
    """What cannot be called makes no Step."""
    with pytest.raises(ProfileError, match="an async function"):
        step("x", None)  # type: ignore[arg-type]
