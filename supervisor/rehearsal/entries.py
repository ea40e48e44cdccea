"""Deployments of a host (a Modal entry, say) as subjects of a rehearsal; the host's package registers how.

A package names, in the group `warmboot.rehearsals` of its entry points, a function of the type `Prepare`. This one
knows no host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Final

from supervisor.errors import ProfileError, SupervisorError
from supervisor.rehearsal.request import RehearsalRequest
from supervisor.rehearsal.subject import Subject

__all__ = ["GROUP", "Prepare", "of_entry"]

GROUP: Final = "warmboot.rehearsals"
Prepare = Callable[[Path, RehearsalRequest, Sequence[str]], Subject]
"""The file of an entry, what is asked for, and variables as `KEY=VALUE` -> what goes into the sandbox."""


def of_entry(file: Path, request: RehearsalRequest, variables: Sequence[str]) -> Subject:
    """The subject that a host's package makes of an entry's file.

    Raises:
        ProfileError: no package is installed that could, or the file, a mount or a variable is wrong.
    """
    refused: SupervisorError | None = None
    for entry in entry_points(group=GROUP):
        try:
            return _loaded(entry, file)(file, request, variables)
        except SupervisorError as error:  # of several hosts, one that knows the file is enough
            refused = error
    if refused is None:
        allowed = f"{file}:ATTRIBUTE, because no installed package rehearses whole files (entry points {GROUP!r})"
        raise ProfileError(field="PROFILE", value=str(file), allowed=allowed)
    raise refused


def _loaded(entry: EntryPoint, file: Path) -> Prepare:
    try:
        prepare: Prepare = entry.load()
    except ImportError as error:
        allowed = f"rehearsed where {entry.value} can be imported ({error}); see its package's installation"
        raise ProfileError(field="PROFILE", value=str(file), allowed=allowed) from error
    return prepare
