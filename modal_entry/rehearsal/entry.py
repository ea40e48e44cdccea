"""What an entry's file says about its model, for whoever prepares a rehearsal of it."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from supervisor.errors import ProfileError, SupervisorError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from modal_entry.serving.server import Model

__all__ = ["weights_of"]

_NUMBERS: Final = itertools.count(1)


def weights_of(entry: Path) -> tuple[Path, ...]:
    """The files of an entry's model, where its containers have them. Imports the entry, and Modal with it.

    Raises:
        ProfileError: the file is missing, fails to import, or holds no class of a server, or several.
    """
    model = _model_of(_module(entry), entry)
    return tuple(model.folder / artifact.path for artifact in model.artifacts)


def _model_of(module: ModuleType, entry: Path) -> Model:
    # Looked up from the base: `@app.server` puts an object of Modal's in the place of the class.
    from modal_entry.serving.server import Model, Server

    mine = [cls for cls in _below(Server) if cls.__module__ == module.__name__]
    servers = [cls for cls in mine if not any(issubclass(other, cls) for other in mine if other is not cls)]
    if len(servers) != 1:
        seen = ", ".join(sorted(cls.__name__ for cls in servers)) or "none"
        allowed = (
            f"an entry, with one subclass of modal_entry.serving.Server (it has: {seen}); a profile is {entry}:NAME"
        )
        raise ProfileError(field="ENTRY", value=str(entry), allowed=allowed)
    model = getattr(servers[0], "model", None)
    if not isinstance(model, Model):
        allowed = f"a file whose {servers[0].__name__}.model is a modal_entry.serving.server.Model, not {model!r}"
        raise ProfileError(field="ENTRY", value=str(entry), allowed=allowed)
    return model


def _below(cls: type[Any]) -> Iterator[type[Any]]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _below(sub)


def _module(entry: Path) -> ModuleType:
    if not entry.is_file():
        raise ProfileError(field="ENTRY", value=str(entry), allowed="a Python file that exists")
    if (folder := str(entry.resolve().parent)) not in sys.path:
        sys.path.insert(0, folder)  # for the modules beside it, as `modal deploy` has it
    # Of its own: classes of an earlier import of the same file may still be around.
    name = f"warmboot_entry_{entry.stem}_{next(_NUMBERS)}"
    spec = importlib.util.spec_from_file_location(name, entry)
    if spec is None or spec.loader is None:
        raise ProfileError(field="ENTRY", value=str(entry), allowed="a Python file, by its name too")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except SupervisorError:
        raise
    except (Exception, SystemExit) as error:
        allowed = f"importable ({type(error).__name__}: {error})"
        raise ProfileError(field="ENTRY", value=str(entry), allowed=allowed) from error
    return module
