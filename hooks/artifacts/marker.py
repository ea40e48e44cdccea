"""`ARTIFACTS.json`: written last by whoever fills a folder, so that its presence means that the rest is whole."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from hooks.artifacts.files import sha256_of, write_atomically

__all__ = ["MARKER", "Entry", "Marker", "MarkerError"]

MARKER: Final = "ARTIFACTS.json"
MAX_MARKER_BYTES: Final = 1 << 20


@dataclass(eq=False)
class MarkerError(Exception):
    """The marker is there, but says nothing that could be used.

    Attributes:
        path: of the marker.
        reason: what is wrong with it.
    """

    path: Path
    reason: str

    def __post_init__(self) -> None:
        super().__init__(self.path, self.reason)  # pickle rebuilds an exception from its args

    def __str__(self) -> str:
        return f"{self.path} is no marker of artifacts: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One file that was whole when the marker was written.

    Attributes:
        path: relative to the folder, with forward slashes.
        size_bytes: its size.
        sha256: its hash, lower-case hexadecimal.
    """

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Marker:
    """What a folder of artifacts holds, and where it came from.

    Attributes:
        repo: the repository, such as `owner/name`; anything that names the source for files from elsewhere.
        revision: as it was asked for: a branch, a tag or a commit.
        commit: what the revision meant then; None when the source has no commits.
        files: in the order in which they were asked for.
        written_at: ISO 8601, UTC.
    """

    repo: str
    revision: str
    commit: str | None
    files: tuple[Entry, ...]
    written_at: str

    @classmethod
    def of(
        cls,
        root: Path,
        paths: tuple[str, ...],
        *,
        repo: str,
        revision: str,
        commit: str | None = None,
        sha256s: dict[str, str] | None = None,
    ) -> Marker:
        """The marker for files that are there now; blocks while those without a known hash are read.

        Args:
            root: the folder.
            paths: of the files, relative to it.
            repo, revision, commit: see the attributes.
            sha256s: hashes of these very files that are known already, by path.

        Raises:
            OSError: a file cannot be read.
        """
        known = sha256s or {}
        files = tuple(
            Entry(path=path, size_bytes=(root / path).stat().st_size, sha256=known.get(path) or sha256_of(root / path))
            for path in paths
        )
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(repo=repo, revision=revision, commit=commit, files=files, written_at=now)

    @classmethod
    def load(cls, root: Path) -> Marker | None:
        """The marker of a folder; None when it has none.

        Raises:
            MarkerError: it is damaged, or cannot be read.
        """
        path = root / MARKER
        try:
            with path.open("rb") as file:
                return cls.parse(file.read(MAX_MARKER_BYTES), path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise MarkerError(path, error.strerror or str(error)) from error

    @classmethod
    def parse(cls, content: bytes, path: Path) -> Marker:
        """The marker from a file's content; `path` is for the error.

        Raises:
            MarkerError: it is damaged.
        """
        try:
            data = json.loads(content)
            files = tuple(Entry(**_typed(entry, path=str, size_bytes=int, sha256=str)) for entry in data["files"])
            texts = _typed({k: v for k, v in data.items() if k != "files"}, repo=str, revision=str, written_at=str)
            commit = texts.get("commit")
            return cls(**{**texts, "commit": None if commit is None else str(commit), "files": files})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise MarkerError(path, f"{type(error).__name__}: {error}") from error

    def save(self, root: Path) -> None:
        """Writes the marker in one step: a reader sees the old one, or all of the new one.

        Raises:
            OSError: it cannot be written.
        """
        write_atomically(root / MARKER, json.dumps(asdict(self), indent=2) + "\n")

    @property
    def content_sha256(self) -> str:
        """A hash of all files' names and hashes: equal for folders of equal content, whenever they were filled."""
        lines = sorted(f"{entry.sha256}  {entry.path}\n" for entry in self.files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def entry(self, path: str) -> Entry | None:
        """What the marker says about a file."""
        return next((entry for entry in self.files if entry.path == path), None)


def _typed(data: dict[str, Any], **types: type) -> dict[str, Any]:
    for name, kind in types.items():
        if type(data[name]) is not kind:
            raise TypeError(f"{name} is of type {type(data[name]).__name__}")
    return data
