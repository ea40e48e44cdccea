"""Checks of a setting's value, for the parts of a profile. Each raises `ProfileError`, which names field and value."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from supervisor.errors import ProfileError, require

__all__ = ["as_path", "count", "is_number", "items", "kind_of", "pattern", "seconds", "url_path"]


def seconds(name: str, value: float, *, low: float = 0.0, high: float = 86_400.0) -> None:
    """Require a time within limits."""
    ok = is_number(value) and math.isfinite(value) and low < value <= high
    require(ok, name, value, f"seconds, more than {low:g} and at most {high:g}")


def is_number(value: object) -> bool:
    """Tell whether it is a number; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def count(name: str, value: int, low: int, high: int) -> None:
    """Require a whole number within limits."""
    require(
        is_number(value) and isinstance(value, int) and low <= value <= high,
        name,
        value,
        f"a whole number from {low} to {high}",
    )


def pattern(name: str, value: str | None) -> None:
    """Require a regular expression, or None."""
    if value is None:
        return
    try:
        re.compile(value)
    except (re.error, TypeError) as error:
        raise ProfileError(field=name, value=value, allowed=f"a regular expression ({error})") from error


def url_path(name: str, value: str) -> None:
    """Require the path of a URL."""
    ok = isinstance(value, str) and value.startswith("/") and value.isprintable() and " " not in value
    require(ok, name, value, "a path that begins with /, without blanks")


def kind_of(value: object) -> str:
    """Return what a message shows of a value that may hold a key: its type."""
    return f"({type(value).__name__})"


def as_path(name: str, value: object) -> Path:
    """Return the value as a path."""
    if not isinstance(value, str | os.PathLike):
        raise ProfileError(field=name, value=value, allowed="a path")
    path = Path(value)
    require("\0" not in os.fspath(path), name, value, "a path without NUL")
    return path


def items(name: str, value: object) -> tuple[object, ...]:
    """Return the value as a tuple; one string is none."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        return tuple(value)
    # The value stays out of the message: a command line may hold a key.
    shown = "one string" if isinstance(value, str) else kind_of(value)
    raise ProfileError(field=name, value=shown, allowed="a tuple of strings")
