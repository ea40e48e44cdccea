"""Hooks of the lifecycle: `Step`, work that may fail a lifecycle point, and `Observer`, which sees every event."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, fields
from typing import Protocol

from supervisor.child import Child
from supervisor.errors import require
from supervisor.events import Event

Observer = Callable[[Event], None]
"""Sees every event, on the supervisor's thread; must neither block nor raise (a raise is caught and reported once)."""


class Step(Protocol):
    """A piece of work at a lifecycle point; raising fails the point.

    Attributes:
        name: for events and errors.
        deadline_s: seconds that it may take; None: the profile's `timeouts.step_s`.
    """

    @property
    def name(self) -> str: ...

    @property
    def deadline_s(self) -> float | None: ...

    async def __call__(self, child: Child) -> None:
        """Do it; cancelled when the deadline passes, the child exits, or the supervision stops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionStep:
    """A Step made of a plain async function; `step` makes it."""

    name: str
    function: Callable[[Child], Awaitable[None]]
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        require(callable(self.function), "function", self.function, "an async function of a Child")

    async def __call__(self, child: Child) -> None:
        """Calls the function."""
        await self.function(child)


def step(name: str, function: Callable[[Child], Awaitable[None]], *, deadline_s: float | None = None) -> Step:
    """Makes a Step of a plain async function: `Hooks(warmup=(step("say hello", say_hello),))`.

    Args:
        name: for events and errors.
        function: called with the Child; raising fails the lifecycle point.
        deadline_s: seconds that it may take; None: the profile's `timeouts.step_s`.
    """
    return FunctionStep(name=name, function=function, deadline_s=deadline_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Steps by lifecycle point, in order, and observers.

    Attributes:
        before_start: before every spawn (artifacts present and whole).
        warmup: once health is green; READY only after all of them.
        before_seal: on the quiesced child; a failure refuses the seal and leaves the child READY.
        sleep: last before SEALED: puts the engine to sleep. From then on nobody may send it a request. After a failure
            the `wake` Steps run; if they pass, the child stays READY, else it is replaced, within the restart budget.
        wake: first at a resume, before any probe (a probe may kill a sleeping engine, or wait for ever): wakes the
            engine. A failure replaces the child, within the restart budget; one by `StillAsleep` leaves it SEALED.
        after_resume: once health is green again; a failure replaces the child, within the restart budget.
        before_stop: before TERM on a requested stop, unless the engine sleeps; failures are reported and do not prevent
            the stop.
        liveness: tiny real inferences for the watchdog (see `Liveness.inference_every_s`).
        observers: see every event.
    """

    before_start: tuple[Step, ...] = ()
    warmup: tuple[Step, ...] = ()
    before_seal: tuple[Step, ...] = ()
    sleep: tuple[Step, ...] = ()
    wake: tuple[Step, ...] = ()
    after_resume: tuple[Step, ...] = ()
    before_stop: tuple[Step, ...] = ()
    liveness: tuple[Step, ...] = ()
    observers: tuple[Observer, ...] = ()

    def __post_init__(self) -> None:
        for point in fields(self):
            members = getattr(self, point.name)
            what = "observers (callables)" if point.name == "observers" else "Steps"
            require(
                isinstance(members, tuple),
                f"Hooks.{point.name}",
                members,
                f"a tuple of {what}; a tuple of one is written `(it,)`",
            )
            for index, member in enumerate(members):
                field = f"Hooks.{point.name}[{index}]"
                if point.name == "observers":
                    require(callable(member), field, member, "callable with one event")
                else:
                    _require_step(field, member)

    def __add__(self, more: Hooks) -> Hooks:
        """Return the Steps of both at each point, these first."""
        return Hooks(**{point.name: getattr(self, point.name) + getattr(more, point.name) for point in fields(self)})


def _require_step(field: str, member: object) -> None:
    """Raises ProfileError unless the member has what a Step needs."""
    is_step = (
        callable(member)
        and not isinstance(member, type)
        and isinstance(getattr(member, "name", None), str)
        and hasattr(member, "deadline_s")
    )
    allowed = 'a Step: `name`, `deadline_s` and an async call with a Child; `step("name", function)` makes one'
    require(is_step, field, member, allowed)
    deadline_s = getattr(member, "deadline_s", None)
    in_range = deadline_s is None or (isinstance(deadline_s, int | float) and deadline_s > 0)
    require(in_range, f"{field}.deadline_s", deadline_s, "seconds over 0, or None for the profile's timeouts.step_s")
