"""The files of a model: what each must be, and what was found in the folder."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from hooks.artifacts.files import sha256_of
from hooks.artifacts.gguf import GgufError, GgufInfo, read
from hooks.artifacts.marker import MARKER, Entry, Marker, MarkerError
from supervisor.errors import require

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Artifact", "FoundFile", "Inventory", "take_inventory"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One file of a model.

    Attributes:
        path: relative to the folder of the artifacts.
        kind: `gguf` has its header read and compared with the size; of `file` only the size is looked at.
        size_bytes: the exact size; None: see the range.
        min_bytes, max_bytes: the range of sizes that can be right; None: no limit.
        sha256: the hash; None: the one in the marker.

    Raises:
        ProfileError: at construction; a setting is wrong.
    """

    path: str
    kind: Literal["gguf", "file"]
    size_bytes: int | None = None
    min_bytes: int | None = None
    max_bytes: int | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        path = PurePosixPath(self.path)
        inside = path.parts and not path.is_absolute() and ".." not in path.parts and str(path) == self.path
        require(bool(inside) and self.path != MARKER, "artifact.path", self.path, "a plain path below the folder")
        require(self.kind in ("gguf", "file"), "artifact.kind", self.kind, "'gguf' or 'file'")
        for name in ("size_bytes", "min_bytes", "max_bytes"):
            value = getattr(self, name)
            require(value is None or (type(value) is int and value > 0), f"artifact.{name}", value, "more than 0")
        if self.min_bytes and self.max_bytes:
            require(self.min_bytes <= self.max_bytes, "artifact.min_bytes", self.min_bytes, f"<= {self.max_bytes}")
        ok = self.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", self.sha256) is not None
        require(ok, "artifact.sha256", self.sha256, "64 lower-case hexadecimal digits")


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFile:
    """One artifact as it was found in its folder.

    Attributes:
        path: relative to the folder.
        size_bytes: None when there is no file.
        sha256: None when it was not computed.
        gguf: the header; None when there is none to read.
        problems: each begins with its name: missing, empty, size differs, truncated, hash differs, ...
    """

    path: str
    size_bytes: int | None = None
    sha256: str | None = None
    gguf: GgufInfo | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """All artifacts of a folder as they were found.

    Attributes:
        root: the folder.
        files: one an artifact, in their order.
        marker: the marker, if there is a readable one.
        marker_problems: what is wrong with it.
    """

    root: Path
    files: tuple[FoundFile, ...]
    marker: Marker | None
    marker_problems: tuple[str, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """Everything that is wrong, each with its file."""
        of_files = (f"{file.path}: {problem}" for file in self.files for problem in file.problems)
        return (*of_files, *(f"{MARKER}: {problem}" for problem in self.marker_problems))


def take_inventory(
    root: Path, artifacts: Sequence[Artifact], *, hashes: bool, repo: str | None = None, revision: str | None = None
) -> Inventory:
    """Compares the files of a folder with what `artifacts` and the marker say about them; no fault of a file raises.

    Args:
        root: the folder.
        artifacts: what must be in it.
        hashes: read every byte as well (about 1 s a GB); else only sizes and the headers of GGUF files.
        repo: the repository that the marker must name; None: any.
        revision: what the marker must name as revision or as commit; None: any.
    """
    problems: list[str] = []
    marker = None
    try:
        marker = Marker.load(root)
    except MarkerError as error:
        problems.append(f"unreadable: {error.reason}")
    files = tuple(_found(root, item, marker.entry(item.path) if marker else None, hashes) for item in artifacts)
    if marker is not None:
        if repo is not None and marker.repo != repo:
            problems.append(f"of another repository: {marker.repo!r}, not {repo!r}")
        if revision is not None and revision not in (marker.revision, marker.commit):
            problems.append(f"of another revision: {marker.revision!r} (commit {marker.commit}), not {revision!r}")
        problems += [f"does not list {item.path}" for item in artifacts if not marker.entry(item.path)]
    elif not problems:
        there = sum(file.size_bytes is not None for file in files)
        half = f"though {there} of {len(files)} files are there: half a download" if there else "nothing was downloaded"
        problems.append(f"missing, {half}")
    return Inventory(root=root, files=files, marker=marker, marker_problems=tuple(problems))


def _found(root: Path, artifact: Artifact, entry: Entry | None, hashes: bool) -> FoundFile:
    path, size, digest, gguf = root / artifact.path, None, None, None
    problems: list[str] = []
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return FoundFile(path=artifact.path, problems=("not a regular file",))
        size = status.st_size
        problems += _size_problems(artifact, entry, size)
        if hashes and size:
            digest = sha256_of(path)
        if artifact.kind == "gguf" and size:
            gguf = read(path)
    except GgufError as error:
        problems.append(f"{error.problem}: {error.detail}")
    except FileNotFoundError:
        problems.append("missing")
    except OSError as error:
        problems.append(f"unreadable: {error.strerror or error}")
    wanted = {"the profile": artifact.sha256, "the marker": entry and entry.sha256}
    if digest:
        problems += [f"hash differs: {digest}, {who} says {w}" for who, w in wanted.items() if w and w != digest]
    if gguf is not None:
        if gguf.unknown_types and not (digest and any(wanted.values())) and not (artifact.size_bytes or entry):
            problems.append(f"size not known: tensor types {gguf.unknown_types} are unknown, and there is no hash")
        if not gguf.tensors and gguf.split_count == 1:
            problems.append("no tensors: the file holds a vocabulary and no weights")
    return FoundFile(path=artifact.path, size_bytes=size, sha256=digest, gguf=gguf, problems=tuple(problems))


def _size_problems(artifact: Artifact, entry: Entry | None, size: int) -> list[str]:
    if not size:
        return ["empty: 0 bytes"]
    wanted = {"the profile": artifact.size_bytes, "the marker": entry and entry.size_bytes}
    problems = [f"size differs: {size} bytes, {who} says {w}" for who, w in wanted.items() if w and w != size]
    low, high = artifact.min_bytes or 1, artifact.max_bytes
    if not low <= size <= (high or size):
        problems.append(f"size differs: {size} bytes, the profile says {low} to {high or 'any'}")
    return problems
