"""Which build is served: a pointer on the volume, switched in one step, with the one before it for the way back.

The pointer is a file, RELEASE.json, and holds both tags, so that there is no moment between two writes. It is no
symlink: volumes are copied, synchronised and snapshotted by content, and a link that comes back as a copy, or dangling,
is a served build that nobody chose.

A running server does not follow the pointer; a snapshot still less, it holds the binary that it was made with. A switch
takes effect with the next deploy, which makes the new snapshot.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from modal_entry.pipeline.commands import emit
from modal_entry.pipeline.hostlock import host_lock
from modal_entry.pipeline.manifest import Finding, Manifest, verify_build, write_whole
from supervisor.errors import SupervisorError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["NoRelease", "PromotionRefused", "Release", "current", "promote", "resolve", "rollback"]

POINTER: Final = "RELEASE.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What the pointer says: the tag that is served, the one before it (None: there is none), and since when (UTC)."""

    current: str
    previous: str | None
    since: str

    def __str__(self) -> str:
        back = f"`rollback` goes back to {self.previous}" if self.previous else "there is nothing to roll back to yet"
        return (
            f"{self.current} is served now, since {self.since}; {back}. Deploy again to make the snapshot with it: "
            "servers and snapshots that exist keep the build that they began with."
        )


@dataclass(eq=False, repr=False, kw_only=True)
class PromotionRefused(SupervisorError):
    """The build is not there, or not whole. The pointer was not touched."""

    cli_status = 2
    tag: str
    findings: tuple[Finding, ...]
    available: tuple[str, ...]

    @property
    def summary(self) -> str:
        doubts = "\n".join(f"    {finding}" for finding in self.findings)
        there = ", ".join(self.available) or "none"
        return (
            f"{self.tag} is not fit to be served:\n{doubts}\nWhole builds on this volume: {there}. Build the tag first."
        )


@dataclass(eq=False, repr=False, kw_only=True)
class NoRelease(SupervisorError):
    """The pointer does not say what is needed. Nothing was changed."""

    cli_status = 2
    root: str
    what: str

    @property
    def summary(self) -> str:
        return f"{self.what} (in {self.root}). `promote` a whole build first."


def promote(root: Path, tag: str, *, on_commit: Callable[[], object] | None = None) -> Release:
    """Serve `tag` from the next deploy on. Promoting what is served already changes nothing.

    Args:
        root: the volume of builds.
        tag: of a build there.
        on_commit: called after a switch, to make it visible to other containers.

    Raises:
        PromotionRefused: `verify_build` doubts the build, or there is none.
        NoRelease: the pointer is there, but damaged.
        OSError: the volume failed; the pointer is the old one.
    """
    with host_lock(root, "release"):
        before = _read(root)
        _check(root, tag)
        if before and before.current == tag:
            return before
        return _switch(root, tag, before.current if before else None, on_commit)


def rollback(root: Path, *, on_commit: Callable[[], object] | None = None) -> Release:
    """Serve the previous build again from the next deploy on; a second rollback undoes the first.

    Args:
        root: the volume of builds.
        on_commit: see `promote`.

    Raises:
        NoRelease: there is no previous build, or the pointer is damaged.
        PromotionRefused: the previous build is no longer whole.
        OSError: the volume failed; the pointer is the old one.
    """
    with host_lock(root, "release"):
        before = _read(root)
        if before is None or before.previous is None:
            what = f"{before.current} is served and nothing was before it" if before else "nothing was ever promoted"
            raise NoRelease(root=str(root), what=what)
        _check(root, before.previous)
        return _switch(root, before.previous, before.current, on_commit)


def current(root: Path) -> Release | None:
    """What is served; None when nothing was ever promoted.

    Raises:
        NoRelease: the pointer is there, but damaged.
        OSError: the volume failed.
    """
    return _read(root)


def resolve(root: Path, *, default: str | None = None) -> Path:
    """The folder of the build to serve. Its files must be there, but are not hashed: this is part of every cold start.

    Args:
        root: the volume of builds.
        default: the tag to serve as long as nothing was ever promoted; None: that is an error.

    Raises:
        NoRelease: nothing was promoted and there is no default, or the pointer is damaged.
        PromotionRefused: the build that it points to is not there or was never finished.
        OSError: the volume failed.
    """
    release = _read(root)
    tag = release.current if release else default
    if tag is None:
        raise NoRelease(root=str(root), what="nothing was ever promoted")
    folder = root / tag
    try:
        files = Manifest.read(folder).files
    except (FileNotFoundError, ValueError):
        findings = verify_build(folder)  # ends at the manifest, and says it in words
    else:
        findings = [Finding(path=name, problem="missing") for name in files if not (folder / name).is_file()]
    if findings:
        raise PromotionRefused(tag=tag, findings=tuple(findings), available=_available(root))
    return folder


def _switch(root: Path, tag: str, previous: str | None, on_commit: Callable[[], object] | None) -> Release:
    for left in root.glob(f".{POINTER}.*"):  # by a process killed in mid-write; the lock keeps living ones out
        left.unlink(missing_ok=True)
    release = Release(current=tag, previous=previous, since=datetime.now(UTC).isoformat(timespec="seconds"))
    value = {"current": release.current, "previous": release.previous, "since": release.since}
    write_whole(root / POINTER, json.dumps(value, indent=2) + "\n")
    if on_commit:
        on_commit()
    emit("release.switched", current=tag, previous=previous)
    return release


def _read(root: Path) -> Release | None:
    try:
        match json.loads((root / POINTER).read_text(encoding="utf-8")):
            case {"current": str() as tag, "previous": str() | None as previous, "since": str() as since}:
                return Release(current=tag, previous=previous, since=since)
            case _:
                what = "it names no current and previous build"
    except FileNotFoundError:
        return None
    except ValueError as error:
        what = str(error)
    raise NoRelease(root=str(root), what=f"{POINTER} is damaged, remove it: {what}")


def _check(root: Path, tag: str) -> None:
    # A tag is one name: "", "." and "a/b" would lead elsewhere.
    if tag.startswith(".") or (root / tag).parent != root:
        findings = [Finding(path=tag, problem="not the name of a build")]
    else:
        findings = verify_build(root / tag)
    if findings:
        raise PromotionRefused(tag=tag, findings=tuple(findings), available=_available(root))


def _available(root: Path) -> tuple[str, ...]:
    """Builds that look whole; finished, though not hashed again."""
    return tuple(sorted(p.parent.name for p in root.glob("*/BUILD.json") if not p.parent.name.startswith(".")))
