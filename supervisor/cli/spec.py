"""From the words of a command line to a profile and its hooks."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from hooks.warmup import steps as warmup
from supervisor.engines import named
from supervisor.errors import ProfileError, SupervisorError
from supervisor.profile import Profile
from supervisor.steps import Hooks

_SHAPES = "a Profile, a (Profile, Hooks) pair, an object with .profile(), or a function that returns one of them"


def load(spec: str) -> tuple[Profile, Hooks]:
    """Loads `module:attribute`, `path/file.py:attribute`, or `local`.

    Raises:
        ProfileError: no such file, module or attribute, the module fails to import, or the attribute is something else.
    """
    if engine := named(spec):
        return engine.profile(), replace(engine.hooks(), warmup=(warmup.Text(),), liveness=(warmup.Ping(),))
    where, colon, attribute = spec.rpartition(":")
    if not colon or not where or not attribute:
        raise ProfileError(field="SPEC", value=spec, allowed="module:attribute, path/file.py:attribute, or 'local'")
    try:
        module = _from_file(Path(where)) if where.endswith(".py") else _from_name(where)
    except ProfileError:
        raise
    except (Exception, SystemExit) as error:
        raise ProfileError(field="SPEC", value=spec, allowed=f"importable ({type(error).__name__}: {error})") from error
    try:
        found = getattr(module, attribute)
    except AttributeError as error:
        names = ", ".join(sorted(name for name in vars(module) if not name.startswith("_"))[:12])
        raise ProfileError(field="SPEC", value=spec, allowed=f"an attribute of {where}, which has: {names}") from error
    return _shape(found, spec)


def _shape(found: object, spec: str) -> tuple[Profile, Hooks]:
    """Calls what is callable and builds what has `.profile()`, until a profile is left."""
    for _ in range(3):  # a function that returns an engine's settings that build a profile
        match found:
            case Profile():
                return found, Hooks()
            case (Profile() as profile, Hooks() as hooks):
                return profile, hooks
        builder = getattr(found, "profile", None)
        build = builder if callable(builder) and not isinstance(found, type) else found
        if not callable(build):
            break
        try:
            found = build()
        except SupervisorError:
            raise
        except (Exception, SystemExit) as error:
            raise ProfileError(
                field="SPEC", value=spec, allowed=f"callable ({type(error).__name__}: {error})"
            ) from error
        if inspect.iscoroutine(found):
            found.close()
            raise ProfileError(field="SPEC", value=spec, allowed=f"{_SHAPES}; a plain `def`, because nobody awaits it")
    raise ProfileError(field="SPEC", value=spec, allowed=f"{_SHAPES}; it is {type(found).__name__}")


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ProfileError(field="SPEC", value=str(path), allowed="a Python file that exists")
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.insert(0, folder)  # for the modules beside it, as `python path/file.py` has it
    name = f"warmboot_spec_{path.stem}"  # of its own: a file called hooks.py must not take the place of a package
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def _from_name(name: str) -> ModuleType:
    if "" not in sys.path:
        sys.path.insert(0, "")  # the working directory, as `python -m` has it
    return importlib.import_module(name)
