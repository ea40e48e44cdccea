"""An entry's file as the subject of `supervise rehearse`; registered in pyproject.toml under `warmboot.rehearsals`."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from supervisor.errors import ProfileError, require
from supervisor.loading import load_file, variables
from supervisor.redact import Secret
from supervisor.rehearsal.drift import Weight
from supervisor.rehearsal.subject import EXCHANGE, Subject, is_guessed_secret

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import ModuleType

    from modal_entry.serving.deployment import Deployment
    from supervisor.rehearsal.request import RehearsalRequest

__all__ = ["prepare", "weights_of"]

_KEY: Final = "API_KEY"  # what every entry's secret holds


def prepare(entry: Path, request: RehearsalRequest, pairs: Sequence[str]) -> Subject:
    """What goes into the sandbox for an entry: the program that deploys it, and runs it as Modal does.

    Args:
        entry: the file.
        request: how it is rehearsed; its mounts are in place of the volumes.
        pairs: variables of the deploy and the container, as `KEY=VALUE`.

    Raises:
        ProfileError: Modal is not installed, or the file, a mount or a variable is wrong.
        ProfileCodeFailed: the file's code raised.
    """
    if importlib.util.find_spec("modal") is None:
        allowed = "a profile (FILE.py:ATTRIBUTE), or an entry where Modal is installed: pip install 'warmboot[modal]'"
        raise ProfileError(field="ENTRY", value=str(entry), allowed=allowed)
    from modal_entry.serving.volumes import BUILDS

    weights = weights_of(entry)
    given = variables(pairs)
    secrets = [value for value in given.values() if isinstance(value, Secret)]
    if _KEY not in given and os.environ.get(_KEY, "").strip():
        secrets.append(Secret(os.environ[_KEY], name=_KEY))
    argv = [sys.executable, "-m", "modal_entry.rehearsal.inside", str(entry), "--exchange", str(EXCHANGE)]
    argv += [word for pair in pairs for word in ("--env", pair)]
    found = {path: Weight.at(path, request.mounts) for path in (*weights, BUILDS)}
    for path, weight in found.items():
        allowed = f"FOLDER:PATH so that the entry finds {path}, as its volume has it"
        require(weight.host.exists(), "--mount", "nothing", allowed)
    return Subject(
        argv=tuple(argv),
        env={name: value for name, value in os.environ.items() if name == _KEY or not is_guessed_secret(name, value)},
        mounts=request.mounts,
        weights=tuple(found[path] for path in weights),
        key_variable=None,
        secrets=tuple(secrets),
    )


def weights_of(entry: Path) -> tuple[Path, ...]:
    """The files of an entry's model, where its containers have them. Imports the entry, and Modal with it.

    Raises:
        ProfileError: the file is missing, or holds no class of a server, or several.
        ProfileCodeFailed: its code raised.
    """
    model = _model_of(load_file(entry, field="ENTRY"), entry)
    return tuple(model.folder / artifact.path for artifact in model.artifacts)


def _model_of(module: ModuleType, entry: Path) -> Deployment:
    # Looked up from the base: `@app.server` puts an object of Modal's in the place of the class.
    from modal_entry.serving.deployment import Deployment
    from modal_entry.serving.server import Server

    mine = [cls for cls in _below(Server) if cls.__module__ == module.__name__]
    servers = [cls for cls in mine if not any(issubclass(other, cls) for other in mine if other is not cls)]
    if len(servers) != 1:
        seen = ", ".join(sorted(cls.__name__ for cls in servers)) or "none"
        allowed = f"an entry, with one subclass of modal_entry.serving.Server (it has: {seen})"
        allowed += f"; a profile is {entry}:NAME"
        raise ProfileError(field="ENTRY", value=str(entry), allowed=allowed)
    model = getattr(servers[0], "deployment", None)
    if not isinstance(model, Deployment):
        allowed = f"a file whose {servers[0].__name__}.deployment is a Deployment of modal_entry.serving, not {model!r}"
        raise ProfileError(field="ENTRY", value=str(entry), allowed=allowed)
    return model


def _below(cls: type[Any]) -> Iterator[type[Any]]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _below(sub)
