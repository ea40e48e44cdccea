"""Importing a user's Python file or module, and saying which of its lines raised."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import ClassVar, Final, TypeVar

from supervisor.errors import ProfileError, SupervisorError
from supervisor.lifecycle.run_steps import describe

__all__ = ["ProfileCodeFailed", "attribute_of", "load_file", "load_module", "raised_by"]

T = TypeVar("T")

_HERE: Final = str(Path(__file__).resolve().parent)
_LIBRARIES: Final = (Path(_HERE).parent, Path(traceback.__file__).resolve().parent)  # this package, Python's own
_NUMBERS: Final = itertools.count(1)


@dataclass(eq=False, repr=False, kw_only=True)
class ProfileCodeFailed(SupervisorError):
    """The Python code that makes a profile raised; nothing was started.

    Attributes:
        name: what was to be loaded, as the user wrote it.
        raised: the class and the text of what was raised.
        where: the lines that lead to it, outermost first: file, line number and source.
    """

    cli_status: ClassVar[int] = 2
    name: str
    raised: str
    where: tuple[str, ...]

    @property
    def summary(self) -> str:
        return "\n    ".join([f"{self.name} cannot be loaded: {self.raised}", *self.where])


def load_file(path: Path, *, field: str) -> ModuleType:
    """Imports a Python file under a name of its own, as often as it is asked to.

    Args:
        path: the file.
        field: what the user calls it, for the error.

    Raises:
        ProfileError: there is no such file.
        ProfileCodeFailed: its code raised.
    """
    if not path.is_file() or path.suffix != ".py":
        raise ProfileError(field=field, value=str(path), allowed="a Python file that exists")
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.insert(0, folder)  # for the modules beside it, as `python path/file.py` has it
    # A name of its own, because a file called hooks.py must not take the place of a package; and a new one each time,
    # because classes of an earlier import of the same file may still be around.
    name = f"warmboot_file_{path.stem}_{next(_NUMBERS)}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    with _translated(str(path)):
        spec.loader.exec_module(module)
    return module


def load_module(name: str, *, field: str) -> ModuleType:
    """Imports a module by its name, from the working directory too.

    Raises:
        ProfileError: there is no such module.
        ProfileCodeFailed: its code raised.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")  # the working directory, as `python -m` has it
    with _translated(name):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
                raise  # the module is there, and one that it imports is not
            allowed = f"a module that can be imported from here: {error}"
            raise ProfileError(field=field, value=name, allowed=allowed) from error


def raised_by(function: Callable[[], T], name: str) -> T:
    """Calls a function of the user's; what it raises becomes a ProfileCodeFailed about `name`."""
    with _translated(name):
        return function()


def attribute_of(thing: object, attribute: str, name: str) -> object | None:
    """An attribute of the user's, or None; what a property or `__getattr__` raises becomes a ProfileCodeFailed."""
    with _translated(name):
        return getattr(thing, attribute, None)


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """Turns what the user's code raises into ProfileCodeFailed; our own errors get a note with the line."""
    try:
        yield
    except ProfileCodeFailed:
        raise
    except SupervisorError as error:
        for line in _lines(error):
            error.add_note(f"    {line}")
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # sys.exit() and errors of the user's own making included
        text = error.msg if isinstance(error, SyntaxError) else describe(error)
        raised = f"{type(error).__name__}: {text}" if text else type(error).__name__
        raise ProfileCodeFailed(name=name, raised=raised, where=tuple(_lines(error))) from error


def _lines(error: BaseException) -> list[str]:
    """The lines of the user's own code that led to an error; where there are none, the line that raised it."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((_HERE, "<"))  # "<": generated code, as that of dataclasses
    ]
    own = [frame for frame in frames if not _is_library(frame.filename)]
    lines = [_line(frame.filename, frame.lineno, frame.line) for frame in own or frames[-1:]]
    if isinstance(error, SyntaxError) and error.filename:
        lines.append(_line(error.filename, error.lineno, error.text))
    return lines


def _line(file: str, number: int | None, source: str | None) -> str:
    return f"{file}, line {number}: {(source or '').strip()}".removesuffix(": ")


def _is_library(file: str) -> bool:
    path = Path(file)
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    return bool(installed) or any(path.is_relative_to(folder) for folder in _LIBRARIES)
