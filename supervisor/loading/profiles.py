"""From what a user writes to a profile and its hooks."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Final

from supervisor.errors import ProfileError
from supervisor.loading.modules import attribute_of, load_file, load_module, raised_by
from supervisor.profile import Profile
from supervisor.steps import Hooks

__all__ = ["GROUP", "load"]

GROUP: Final = "warmboot.profiles"
"""The group of entry points that register profiles under a name; an entry point names any of the shapes below."""
_FIELD: Final = "PROFILE"
_SHAPES: Final = "a Profile, a (Profile, Hooks) pair, an object with .profile(), or a function that returns one of them"


def load(name: str) -> tuple[Profile, Hooks]:
    """Loads `module:attribute`, `path/file.py:attribute`, or a registered name such as `local`.

    Raises:
        ProfileError: there is no such file, module, attribute or name, or the attribute is something else.
        ProfileCodeFailed: the code behind it raised; the error names file and line.
    """
    if registered := entry_points(group=GROUP, name=name):
        return _profile_of(_registered(registered[name]), name)
    where, colon, attribute = name.rpartition(":")
    if not colon or not where or not attribute:
        known = ", ".join(sorted({repr(entry.name) for entry in entry_points(group=GROUP)}))
        allowed = f"module:attribute, path/file.py:attribute, or a registered name ({known or 'there is none'})"
        raise ProfileError(field=_FIELD, value=name, allowed=allowed)
    module = load_file(Path(where), field=_FIELD) if where.endswith(".py") else load_module(where, field=_FIELD)
    if (found := attribute_of(module, attribute, name)) is None:
        names = ", ".join(sorted(name for name in vars(module) if not name.startswith("_"))[:12])
        allowed = f"an attribute of {where}, which has: {names}"
        raise ProfileError(field=_FIELD, value=name, allowed=allowed)
    return _profile_of(found, name)


def _registered(entry: EntryPoint) -> object:
    found: object = raised_by(entry.load, f"the registered profile {entry.name!r} ({entry.value})")
    return found


def _profile_of(found: object, name: str) -> tuple[Profile, Hooks]:
    """Calls what is callable and builds what has `.profile()`, until a profile is left."""
    for _ in range(3):  # a function that returns an engine's settings that build a profile
        match found:
            case Profile():
                return found, Hooks()
            case (Profile() as profile, Hooks() as hooks):
                return profile, hooks
        build: Any = found
        if callable(attribute_of(found, "profile", name)) and not isinstance(found, type):
            build = partial(_built_by, found)
        if not callable(build):
            break
        _check_arguments(build, name)
        found = raised_by(build, name)
        if inspect.iscoroutine(found):
            found.close()
            raise ProfileError(field=_FIELD, value=name, allowed=f"{_SHAPES}; a plain `def`, because nobody awaits it")
    raise ProfileError(field=_FIELD, value=name, allowed=f"{_SHAPES}; it is {type(found).__name__}")


def _built_by(engine: Any) -> object:
    """What an object with `.profile()` makes; an engine's `.hooks()` are the Steps without which it does not work."""
    profile = engine.profile()
    if isinstance(profile, Profile) and callable(getattr(engine, "hooks", None)):
        return profile, engine.hooks()
    return profile


def _check_arguments(build: Callable[..., object], name: str) -> None:
    try:
        inspect.signature(build).bind()
    except TypeError as error:  # it needs arguments
        allowed = f"something that can be called without arguments ({error})"
        raise ProfileError(field=_FIELD, value=name, allowed=allowed) from error
    except ValueError:  # a builtin that does not show its signature
        return
