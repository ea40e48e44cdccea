"""What one process maps, holds open, was started with: files of /proc/<pid>, read and parsed.

Readers return None when we may not look, and are empty for a process that is gone.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

DELETED: Final = " (deleted)"

# proc_pid_maps(5); the path begins after the padding and may itself hold anything.
_LINE: Final = re.compile(
    r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) [0-9a-f]+ ([0-9a-f]+):([0-9a-f]+) (\d+)(?: +(.*))?", re.DOTALL
)


class FileId(NamedTuple):
    """Which file it is, whatever its name."""

    device: int
    inode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MapLine:
    """One line of /proc/<pid>/maps.

    Attributes:
        number: of the line, from 1.
        text: the line as it stands there.
        file: what the kernel says is mapped; overlayfs and btrfs show another device here than stat(2) does.
        path: as shown: empty for anonymous memory, `[heap]` and the like, and with ` (deleted)` at the end for a file
            that is no more, or that has such a name.
    """

    number: int
    text: str
    file: FileId
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """One open descriptor.

    Attributes:
        fd: its number.
        target: what /proc/<pid>/fd shows: a path, `socket:[N]`, `pipe:[N]`, `anon_inode:[...]`.
        file: which file is open; None when that could not be asked.
        regular: whether it is a regular file; so is one that could not be asked and has a path.
    """

    fd: int
    target: str
    file: FileId | None
    regular: bool


def parse_maps(text: str) -> tuple[MapLine, ...]:
    """Reads /proc/<pid>/maps; lines that do not read as such are left out."""
    found = []
    # Not splitlines(): of all that it takes for a line's end, the kernel escapes only the line feed.
    for number, line in enumerate(text.split("\n"), start=1):
        if match := _LINE.fullmatch(line):
            device = os.makedev(int(match[4], 16), int(match[5], 16))
            path = (match[7] or "").replace("\\012", "\n")
            found.append(MapLine(number=number, text=line, file=FileId(device, int(match[6])), path=path))
    return tuple(found)


def maps(pid: int) -> tuple[MapLine, ...] | None:
    """What a process maps."""
    data = _read(pid, "maps")
    return None if data is None else parse_maps(os.fsdecode(data))


def links(pid: int) -> dict[int, str] | None:
    """What a process holds open, by descriptor."""
    found = {}
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            try:
                found[int(fd)] = os.readlink(f"/proc/{pid}/fd/{fd}")
            except FileNotFoundError:  # closed since it was listed
                continue
    except PermissionError:
        return None
    except OSError:
        pass  # gone by now
    return found


def descriptors(pid: int) -> tuple[Descriptor, ...] | None:
    """What a process holds open, and which files these are."""
    targets = links(pid)
    if targets is None:
        return None
    found = []
    for fd, target in sorted(targets.items()):
        file, regular = None, target.startswith("/")
        if regular:
            try:
                status = Path(f"/proc/{pid}/fd/{fd}").stat()
            except OSError:
                pass  # a file system that does not answer, or closed by now
            else:
                file, regular = FileId(status.st_dev, status.st_ino), stat.S_ISREG(status.st_mode)
        found.append(Descriptor(fd=fd, target=target, file=file, regular=regular))
    return tuple(found)


def holds_any(pid: int, paths: Collection[str]) -> bool:
    """Whether a process has one of these files open or mapped, by its real path; never touches the file itself."""
    if any(target in paths for target in (links(pid) or {}).values()):
        return True
    mapped = _read(pid, "maps") or b""
    return any(b" %b\n" % os.fsencode(path.replace("\n", "\\012")) in mapped for path in paths)


def identify(path: str) -> FileId | None:
    """Which file is at a path now; None when there is none, or nobody can tell."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError):
        return None
    return FileId(status.st_dev, status.st_ino)


def argv(pid: int) -> tuple[str, ...]:
    """A process's command line; empty when it is gone, or may not be looked at."""
    data = _read(pid, "cmdline")
    return tuple(word.decode(errors="replace") for word in data.removesuffix(b"\0").split(b"\0")) if data else ()


def name_of(pid: int) -> str:
    """A process's name, which it may have set itself; empty when it is gone."""
    return (_read(pid, "comm") or b"").decode(errors="replace").strip()


def environment(pid: int) -> Mapping[str, str] | None:
    """The variables with which a process's program was started.

    A process that wrote over that memory, as those do which set their title, has the variables no more: {"": ""}.
    """
    data = _read(pid, "environ")
    if data is None:
        return None
    words = [word.partition(b"=") for word in data.split(b"\0") if b"=" in word]
    if data and not words:
        return {"": ""}
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in words}


def _read(pid: int, name: str) -> bytes | None:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except PermissionError:
        return None
    except OSError:
        return b""
