"""What the engine has, as its dialect says: routes, and what the engine tells about itself on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeVar

from hooks.http.ask import ask

if TYPE_CHECKING:
    from supervisor.child import Child
    from supervisor.dialect import Dialect, Reading

__all__ = ["Unsupported", "loading_words", "read", "route", "sleeps"]

T = TypeVar("T")

_WHAT = {
    "chat_path": "route for chat",
    "completions_path": "route for completions",
    "responses_path": "route for responses",
    "images_path": "route for images",
}


class Unsupported(Exception):
    """The engine does not have what a hook needs, as its dialect says. The message names both."""


def route(child: Child, name: Literal["chat_path", "completions_path", "responses_path", "images_path"]) -> str:
    """The route of that name in the engine's dialect.

    Raises:
        Unsupported: the engine has no such route.
    """
    dialect = child.profile.dialect
    path: str | None = getattr(dialect, name)
    if path is None:
        raise Unsupported(f"the engine ({dialect.engine}) has no {_WHAT[name]}: leave this out")
    return path


def loading_words(*dialects: Dialect) -> tuple[str, ...]:
    """What engines say while they load, for `Patience`."""
    return tuple(dict.fromkeys(dialect.loading for dialect in dialects if dialect.loading))


async def read(child: Child, reading: Reading[T], *, timeout_s: float | None = None) -> T | None:
    """Asks for something that the engine tells about itself; None: the answer does not tell.

    Raises:
        BadAnswer: no answer came.
    """
    answer = await ask(child, reading.path, timeout_s=timeout_s)
    return reading.read(answer.body) if answer.status == 200 else None


async def sleeps(child: Child, model: str) -> bool:
    """Whether an engine that holds several models says that this one is asleep; False: it does not, or does not tell.

    Raises:
        BadAnswer: no answer came.
    """
    reading = child.profile.dialect.states
    states = await read(child, reading) if reading else None
    return bool(states and model in states and states[model].value == "asleep")
