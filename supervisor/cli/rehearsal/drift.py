"""What is different when a snapshot is restored: another container, later, over volumes that went on changing.

Weights drift in a copy: the folder that holds them is staged, mounted over the real one in the sandbox, and changed
between the checkpoint and the restore. The real files are never touched.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from supervisor.cli.rehearsal.bundle import Mount
from supervisor.errors import ProfileError

__all__ = ["CLOCK_S", "KINDS", "Weight", "drifted_env", "staged"]

KINDS: Final = ("weights", "weights-moved", "weights-truncated", "clock", "env")
CLOCK_S: Final = 30.0  # of suspension, for `clock`
_BLOCK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """A file of the weights: where it lies on this machine, and where the sandbox sees it."""

    host: Path
    inside: Path

    @classmethod
    def at(cls, path: Path) -> Self:
        """One that both see in the same place; links among its folders are followed."""
        real = Path(os.path.realpath(path.parent)) / path.name
        return cls(host=real, inside=real)


def staged(weights: Sequence[Weight], kinds: Sequence[str], folder: Path) -> tuple[list[Mount], Callable[[], None]]:
    """Copies of the weights where the sandbox will look for the real ones, and what makes them drift.

    Args:
        weights: the files.
        kinds: of drift; without one of the weights, nothing is copied.
        folder: a new folder for the copies. Blocks while they are written.

    Raises:
        ProfileError: there are no weights that could drift, or they are not on this machine.
    """
    changes = [_CHANGES[kind] for kind in kinds if kind in _CHANGES]
    if not changes:
        return [], lambda: None
    if not weights:
        raise ProfileError(field="--drift", value=kinds[0], allowed="for a profile that names its weights (--weights)")
    copies: list[Path] = []
    mounts: list[Mount] = []
    for host, inside in dict.fromkeys((weight.host.parent, weight.inside.parent) for weight in weights):
        stage = folder / str(len(mounts))
        stage.mkdir(parents=True)
        mounts.append(Mount(source=stage, target=inside))
        names = {weight.host.name for weight in weights if weight.host.parent == host}
        if missing := sorted(name for name in names if not (host / name).is_file()):
            raise ProfileError(
                field="--drift", value=kinds[0], allowed=f"for weights that are there: {host / missing[0]}"
            )
        for entry in os.scandir(host):
            copy = stage / entry.name
            if entry.name in names:
                shutil.copyfile(entry.path, copy)
                copies.append(copy)
            elif entry.is_symlink():
                copy.symlink_to(os.readlink(entry.path))
            elif entry.is_dir():
                copy.mkdir()  # where the real one is mounted
                mounts.append(Mount(source=Path(entry.path), target=inside / entry.name))
            elif entry.is_file():
                _link(Path(entry.path), copy)

    def drift() -> None:
        for copy in copies:
            for change in changes:
                change(copy)

    return mounts, drift


def drifted_env(kinds: Sequence[str], key_variable: str | None) -> dict[str, str]:
    """Variables that another container might have, for `env`: a proxy that leads nowhere, another zone, another key."""
    if "env" not in kinds:
        return {}
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    return {**proxies, "TZ": "Pacific/Kiritimati", **({key_variable: "rotated-since"} if key_variable else {})}


def _replace(path: Path) -> None:
    """Another file of the same size takes its place: the head as it was, the numbers scrambled."""
    other = path.with_name(f"{path.name}.other")
    size = path.stat().st_size
    with path.open("rb") as source, other.open("wb") as target:
        while block := source.read(_BLOCK_BYTES):
            target.write(block if source.tell() <= size // 4 else block[::-1])
    other.replace(path)


def _move(path: Path) -> None:
    path.rename(path.with_name(f"{path.name}.moved"))


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _link(path: Path, copy: Path) -> None:
    try:
        copy.hardlink_to(path)
    except OSError:  # another file system
        shutil.copyfile(path, copy)


_CHANGES: Final[dict[str, Callable[[Path], None]]] = {
    "weights": _replace,
    "weights-moved": _move,
    "weights-truncated": _truncate,
}
