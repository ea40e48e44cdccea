"""What is different when a snapshot is restored: another container, later, over volumes that went on changing.

Weights drift in a copy: the folder that holds them is staged, mounted over the real one in the sandbox, and changed
between the checkpoint and the restore. The real files are never touched; what lies beside them is seen, and may not be
written.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from supervisor.errors import require
from supervisor.rehearsal.bundle import Mount

__all__ = ["ASIDE", "CLOCK_S", "KINDS", "Weight", "drifted_env", "staged"]

ASIDE: Final = Path("/warmboot-aside")  # where the sandbox sees the real folders of the weights
CLOCK_S: Final = 30.0  # of suspension, for `clock`
KINDS: Final = {
    "weights": "another file of the same size in place of the weights: the same head, other numbers",
    "weights-moved": "the weights have another name",
    "weights-truncated": "the weights have lost their second half",
    "clock": f"{CLOCK_S:.0f} s pass",
    "env": "the host's environment has a proxy that leads nowhere, another time zone, another key",
}
"""What may drift, and how."""
_BLOCK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """A file of the weights: where it lies on this machine, and where the sandbox sees it."""

    host: Path
    inside: Path

    @classmethod
    def at(cls, path: Path, mounts: Sequence[Mount] = ()) -> Self:
        """The file that a path of the sandbox leads to, links followed, as those of a cache of downloads."""
        host = path
        for mount in mounts:
            if path.is_relative_to(mount.target):
                host = mount.source / path.relative_to(mount.target)
        real = Path(os.path.realpath(host))
        for mount in mounts:
            if real.is_relative_to(mount.source):
                return cls(host=real, inside=mount.target / real.relative_to(mount.source))
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
    changes = {kind: _CHANGES[kind] for kind in kinds if kind in _CHANGES}
    if not changes:
        return [], lambda: None
    require(len(changes) == 1, "--drift", " ".join(changes), f"at most one of {', '.join(_CHANGES)}")
    ((kind, change),) = changes.items()
    require(bool(weights), "--drift", kind, "for a profile that names its weights (--weights)")
    for weight in weights:
        require(weight.host.is_file(), "--drift", kind, f"for weights that are there: {weight.host} is not")
    folder.mkdir()
    needed, free = sum(weight.host.stat().st_size for weight in weights), shutil.disk_usage(folder).free
    room = f"smaller: a copy of the weights takes {needed} bytes, and {folder} has {free}. Set TMPDIR to a larger disk"
    require(needed < free, "--drift", kind, room)
    copies: list[Path] = []
    mounts: list[Mount] = []
    for number, (host, inside) in enumerate(dict.fromkeys((w.host.parent, w.inside.parent) for w in weights)):
        stage, aside = folder / str(number), ASIDE / str(number)
        stage.mkdir()
        mounts += [Mount(source=stage, target=inside), Mount(source=host, target=aside, readonly=True)]
        names = {weight.host.name for weight in weights if weight.host.parent == host}
        for entry in os.scandir(host):
            if entry.name in names:
                shutil.copyfile(entry.path, stage / entry.name)
                copies.append(stage / entry.name)
            else:
                (stage / entry.name).symlink_to(aside / entry.name)

    def drift() -> None:
        for copy in copies:
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
        while block := source.read(min(_BLOCK_BYTES, size // 4 + 1)):
            target.write(block if source.tell() <= size // 3 else block[::-1])
    other.replace(path)


def _move(path: Path) -> None:
    path.rename(path.with_name(f"{path.name}.moved"))


def _truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


_CHANGES: Final[dict[str, Callable[[Path], None]]] = {
    "weights": _replace,
    "weights-moved": _move,
    "weights-truncated": _truncate,
}
