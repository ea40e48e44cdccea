"""What a rehearsal is asked to do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from supervisor.errors import require
from supervisor.rehearsal.bundle import Mount
from supervisor.rehearsal.drift import CLOCK_S, KINDS

__all__ = ["RehearsalRequest", "mounts_of"]

_TAKEN: Final = ("/", "/proc", "/dev", "/sys")


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearsalRequest:
    """A rehearsal, whatever is rehearsed.

    Attributes:
        name: what is rehearsed, as the user named it; the title of the report.
        drift: what is different at the restore; some of `drift.KINDS`.
        suspend_s: how long the image lies saved, at least; seconds.
        contract, golden: whether the snapshot contract is checked, and golden answers are compared.
        mounts: folders of this machine in place of volumes.
    """

    name: str
    drift: tuple[str, ...] = ()
    suspend_s: float = 0.0
    contract: bool = True
    golden: bool = True
    mounts: tuple[Mount, ...] = ()

    def __post_init__(self) -> None:
        for kind in self.drift:
            require(kind in KINDS, "drift", kind, f"one of {', '.join(KINDS)}")
        require(self.suspend_s >= 0, "suspend_s", self.suspend_s, "0 or more")

    @property
    def suspended_s(self) -> float:
        """How long the image lies saved, with what the drift of the clock asks for."""
        return max(self.suspend_s, CLOCK_S if "clock" in self.drift else 0.0)


def mounts_of(texts: Sequence[str]) -> tuple[Mount, ...]:
    """Mounts that a user writes as `FOLDER:PATH`.

    Raises:
        ProfileError: one has another form, its folder is missing, its path is taken.
    """
    found: list[Mount] = []
    for text in texts:
        source, _, target = text.rpartition(":")
        require(bool(source) and target.startswith("/"), "--mount", text, "FOLDER:PATH with an absolute PATH")
        require(
            Path(source).is_dir(), "--mount", text, f"FOLDER:PATH with a folder that exists here, as {source} does not"
        )
        path = Path(os.path.normpath(target))
        require(str(path) not in _TAKEN, "--mount", text, f"FOLDER:PATH with a PATH that is none of {' '.join(_TAKEN)}")
        require(path not in [mount.target for mount in found], "--mount", text, "the only one at its PATH")
        found.append(Mount(source=Path(source).resolve(), target=path))
    return tuple(found)
