"""Files that must be there, and be whole, before a server may start."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final, Literal

import anyio.to_thread

from hooks.artifacts.files import sha256_of
from hooks.artifacts.gguf import GgufError, GgufInfo, read
from hooks.artifacts.marker import MARKER, Entry, Marker, MarkerError
from supervisor.errors import require

if TYPE_CHECKING:
    from collections.abc import Sequence

    from supervisor.child import Child

__all__ = ["Artifact", "ArtifactError", "ArtifactsPresent", "Report", "Row", "verify"]

DOWNLOAD: Final = "run download_model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """One file of a model.

    Attributes:
        path: relative to the folder of the artifacts.
        kind: `gguf` has its header read; `file` is any other.
        size_bytes: the exact size; None: see the range.
        min_bytes, max_bytes: the range of sizes that can be right; None: no limit.
        sha256: the hash; None: the one in the marker.

    Raises:
        ProfileError: at construction; a setting is wrong.
    """

    path: str
    kind: Literal["gguf", "file"] = "gguf"
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
class Row:
    """One artifact as it was found.

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
class Report:
    """All artifacts of a folder as they were found.

    Attributes:
        root: the folder.
        rows: one an artifact, in their order.
        marker: the marker, if there is a readable one.
        marker_problems: what is wrong with it.
    """

    root: Path
    rows: tuple[Row, ...]
    marker: Marker | None
    marker_problems: tuple[str, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """Everything that is wrong, each with its file."""
        of_files = (f"{row.path}: {problem}" for row in self.rows for problem in row.problems)
        return (*of_files, *(f"{MARKER}: {problem}" for problem in self.marker_problems))


@dataclass(eq=False)
class ArtifactError(Exception):
    """The artifacts are not what they should be.

    Attributes:
        root: the folder.
        problems: everything that is wrong, each with its file.
        mend: the command that puts it right.
    """

    root: Path
    problems: tuple[str, ...]
    mend: str = DOWNLOAD

    def __post_init__(self) -> None:
        super().__init__(self.root, self.problems, self.mend)  # pickle rebuilds an exception from its args

    def __str__(self) -> str:
        what = "\n    ".join([f"the artifacts in {self.root} are not whole:", *self.problems])
        return f"{what}\nTo mend it: {self.mend}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactsPresent:
    """A Step for `before_start`: every artifact is there, marked as whole, with the right size and a sound header.

    Nothing is hashed: that would read all the weights once more at every start. `verify(hashes=True)` does it.

    Attributes:
        root: the folder.
        artifacts: what must be in it; every file that the profile calls weights must be among them.
        repo: the repository that the marker must name; None: any.
        revision: what the marker must name as revision or as commit; None: any.
        mend: the command that errors recommend.
        name, deadline_s: see `Step`.
    """

    root: Path
    artifacts: tuple[Artifact, ...]
    repo: str | None = None
    revision: str | None = None
    mend: str = DOWNLOAD
    name: str = "artifacts"
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        require(bool(self.artifacts), f"{self.name}.artifacts", self.artifacts, "at least one artifact")

    async def __call__(self, child: Child) -> None:
        """Look at every file; in a thread, because a volume may block.

        Raises:
            ArtifactError: something is wrong; it names each file.
        """
        await anyio.to_thread.run_sync(self._look, child.profile.weights, abandon_on_cancel=True)

    def _look(self, weights: tuple[Path, ...]) -> None:
        known = {os.path.abspath(self.root / artifact.path) for artifact in self.artifacts}  # noqa: PTH100 - keeps links
        strangers = [path for path in weights if os.path.abspath(path) not in known]  # noqa: PTH100
        problems = [f"{path}: the server will load it, but it is not among the artifacts" for path in strangers]
        report = verify(self.root, self.artifacts, hashes=False, repo=self.repo, revision=self.revision)
        if problems := [*report.problems, *problems]:
            raise ArtifactError(self.root, tuple(problems), self.mend)


def verify(
    root: Path, artifacts: Sequence[Artifact], *, hashes: bool, repo: str | None = None, revision: str | None = None
) -> Report:
    """Compares files with what is said about them, in `artifacts` and in the marker; raises nothing about files.

    Args:
        root: the folder.
        artifacts: what must be in it.
        hashes: read every byte as well (about 1 s a GB); else only sizes and GGUF headers.
        repo: the repository that the marker must name; None: any.
        revision: what the marker must name as revision or as commit; None: any.
    """
    problems: list[str] = []
    marker = None
    try:
        marker = Marker.load(root)
    except MarkerError as error:
        problems.append(f"unreadable: {error.reason}")
    rows = tuple(_row(root, item, marker.entry(item.path) if marker else None, hashes) for item in artifacts)
    if marker is not None:
        if repo is not None and marker.repo != repo:
            problems.append(f"of another repository: {marker.repo!r}, not {repo!r}")
        if revision is not None and revision not in (marker.revision, marker.commit):
            problems.append(f"of another revision: {marker.revision!r} (commit {marker.commit}), not {revision!r}")
        problems += [f"does not list {item.path}" for item in artifacts if not marker.entry(item.path)]
    elif not problems:
        there = sum(row.size_bytes is not None for row in rows)
        half = f"though {there} of {len(rows)} files are there: half a download" if there else "nothing was downloaded"
        problems.append(f"missing, {half}")
    return Report(root=root, rows=rows, marker=marker, marker_problems=tuple(problems))


def _row(root: Path, artifact: Artifact, entry: Entry | None, hashes: bool) -> Row:
    path, size, digest, gguf = root / artifact.path, None, None, None
    problems: list[str] = []
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            return Row(path=artifact.path, problems=("not a regular file",))
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
    return Row(path=artifact.path, size_bytes=size, sha256=digest, gguf=gguf, problems=tuple(problems))


def _size_problems(artifact: Artifact, entry: Entry | None, size: int) -> list[str]:
    if not size:
        return ["empty: 0 bytes"]
    wanted = {"the profile": artifact.size_bytes, "the marker": entry and entry.size_bytes}
    problems = [f"size differs: {size} bytes, {who} says {w}" for who, w in wanted.items() if w and w != size]
    low, high = artifact.min_bytes or 1, artifact.max_bytes
    if not low <= size <= (high or size):
        problems.append(f"size differs: {size} bytes, the profile says {low} to {high or 'any'}")
    return problems
