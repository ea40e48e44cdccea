"""Which build an app serves: a pointer file for each app in each Modal environment, with the build before it.

The pointer lies on the volume of builds, in `releases/ENVIRONMENT/APP.json`, and names both builds, so that there is no
moment between two writes. It is no symlink: volumes are copied, synchronised and snapshotted by content, and a link
that comes back as a copy, or dangling, is a served build that nobody chose.

Only `modal deploy` follows the pointer. It writes the build's name and hash into the definition of the server, so that
a deploy after a switch is never skipped, and containers serve that build whatever the pointer says later.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from hooks.artifacts.files import write_atomically
from modal_entry.pipeline.commands import emit, host_lock
from modal_entry.pipeline.manifest import BUILD_JSON, BuildFault, BuildId, check_build
from supervisor.errors import SupervisorError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["NoRelease", "PromotionRefused", "Release", "Releases", "pointer_path"]

_FOLDER: Final = "releases"


def pointer_path(environment: str, app: str) -> PurePosixPath:
    """Where the pointer of an app lies, relative to the volume of builds."""
    return PurePosixPath(_FOLDER, environment, f"{app}.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What a pointer says: the build to serve, the one before it (None: there is none), and since when (UTC)."""

    current: BuildId
    previous: BuildId | None
    since: str

    def __str__(self) -> str:
        back = f"`rollback` goes back to {self.previous.folder}" if self.previous else "there is no way back yet"
        return (
            f"{self.current.folder} is promoted, since {self.since}; {back}. It is served from the next `modal deploy` "
            "on: what is deployed keeps the build that it was deployed with."
        )

    @classmethod
    def parse(cls, content: bytes | str, path: str) -> Release:
        """The release from the pointer's content; `path` is for the error.

        Raises:
            NoRelease: the pointer is damaged.
        """
        try:
            value = json.loads(content)
            previous = value["previous"]
            return cls(
                current=_build_id(value["current"]),
                previous=None if previous is None else _build_id(previous),
                since=str(value["since"]),
            )
        except (ValueError, TypeError, KeyError) as error:
            what = f"the pointer is damaged ({type(error).__name__}: {error}); remove it"
            raise NoRelease(path=path, what=what) from error


@dataclass(eq=False, repr=False, kw_only=True)
class PromotionRefused(SupervisorError):
    """The build is not there, or not whole. The pointer was not touched."""

    cli_status = 2
    folder: str
    faults: tuple[BuildFault, ...]
    available: tuple[str, ...]

    @property
    def summary(self) -> str:
        doubts = "\n".join(f"    {fault}" for fault in self.faults)
        there = ", ".join(self.available) or "none"
        return (
            f"{self.folder} is not fit to be served:\n{doubts}\n"
            f"Builds on this volume: {there}. Build the tag first: `build_llama_server`."
        )


@dataclass(eq=False, repr=False, kw_only=True)
class NoRelease(SupervisorError):
    """The pointer does not say what is needed. Nothing was changed."""

    cli_status = 2
    path: str
    what: str

    @property
    def summary(self) -> str:
        return f"{self.what} ({self.path}). Promote a whole build: `modal run ENTRY.py::promote`."


@dataclass(frozen=True, slots=True, kw_only=True)
class Releases:
    """The pointer of one app in one environment.

    Attributes:
        root: the volume of builds.
        environment, app: Modal's names.
        on_commit: called after a switch, to make it visible to other containers.
    """

    root: Path
    environment: str
    app: str
    on_commit: Callable[[], object] | None = None

    @property
    def path(self) -> Path:
        """The pointer's file."""
        return self.root / pointer_path(self.environment, self.app)

    def current(self) -> Release | None:
        """What the pointer says; None when nothing was ever promoted.

        Raises:
            NoRelease: the pointer is there, but damaged.
            OSError: the volume failed.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        return Release.parse(content, str(self.path))

    def promote(self, folder: str) -> Release:
        """Point to a build. Promoting the one that is promoted already keeps the way back, and renews the time.

        The time is part of what `modal deploy` fixes: a deploy after any promotion makes new snapshots, which a changed
        key or driver needs too.

        Raises:
            PromotionRefused: `check_build` doubts the build, or there is none.
            NoRelease: the pointer is there, but damaged.
            OSError: the volume failed; the pointer is the old one.
        """
        with host_lock(self.root, f"release {self.environment} {self.app}"):
            before = self.current()
            build = self._checked(folder)
            if before and before.current == build:
                return self._write(build, before.previous, "release.renewed")
            return self._write(build, before.current if before else None, "release.switched")

    def rollback(self) -> Release:
        """Point to the previous build again; a second rollback undoes the first.

        Raises:
            NoRelease: there is no previous build, or the pointer is damaged.
            PromotionRefused: the previous build is no longer whole, or not the one that it was.
            OSError: the volume failed; the pointer is the old one.
        """
        with host_lock(self.root, f"release {self.environment} {self.app}"):
            before = self.current()
            if before is None or before.previous is None:
                served = f"{before.current.folder} is promoted and nothing was before it" if before else ""
                raise NoRelease(path=str(self.path), what=served or "nothing was ever promoted")
            build = self._checked(before.previous.folder)
            if build != before.previous:
                fault = BuildFault(path=BUILD_JSON, problem="not the build that was promoted: its hash is another one")
                raise self._refused(build.folder, [fault])
            return self._write(build, before.current, "release.switched")

    def _write(self, build: BuildId, previous: BuildId | None, event: str) -> Release:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Left by a process that was killed in mid-write; the lock keeps living ones out.
        for left in self.path.parent.glob(f".{self.path.name}.*"):
            left.unlink(missing_ok=True)
        release = Release(current=build, previous=previous, since=datetime.now(UTC).isoformat(timespec="seconds"))
        write_atomically(self.path, json.dumps(asdict(release), indent=2) + "\n")
        if self.on_commit:
            self.on_commit()
        emit(event, current=build.folder, previous=previous.folder if previous else None)
        return release

    def _checked(self, name: str) -> BuildId:
        # A build is one name: "", "." and "a/b" would lead elsewhere.
        folder = self.root / name
        if name.startswith(".") or folder.parent != self.root:
            faults = [BuildFault(path=name, problem="not the name of a build")]
        else:
            faults = check_build(folder)
        if faults:
            raise self._refused(name, faults)
        return BuildId.of(folder)

    def _refused(self, folder: str, faults: list[BuildFault]) -> PromotionRefused:
        whole = (path.parent.name for path in self.root.glob(f"*/{BUILD_JSON}"))
        available = tuple(sorted(name for name in whole if not name.startswith(".")))
        return PromotionRefused(folder=folder, faults=tuple(faults), available=available)


def _build_id(value: Any) -> BuildId:
    folder, sha256 = value["folder"], value["sha256"]
    if not isinstance(folder, str) or not isinstance(sha256, str):
        raise TypeError("a build is no pair of texts")
    return BuildId(folder=folder, sha256=sha256)
