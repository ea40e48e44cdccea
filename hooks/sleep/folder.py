"""The private folder in which the processes of one server offer their sockets.

Its name is fixed when the profile is made, because the server learns it from its environment; the folder itself lives
from `before_start` until the child is gone. Whoever may enter it may take the server's memory away: so it is 0700, of
an unpredictable name, and nothing in it is believed that others could have put there.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import stat
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hooks.sleep.offload.errors import GpuMemoryError
from supervisor import events

if TYPE_CHECKING:
    from supervisor.child import Child

__all__ = ["VARIABLE", "FolderInUse", "PrivateFolder", "folder_of", "new_path", "sockets"]

VARIABLE: Final = "WARMBOOT_GPU_MEMORY"
"""By which the library learns the folder; without it the library does nothing."""

_PREFIX: Final = "warmboot-gpu-"
# A socket's address has 107 bytes, unix(7); `/warmboot-gpu-<16>/<pid>.sock` takes 43 of them.
_LONGEST_BASE: Final = 60
_TRIES: Final = 5
_RETRY_S: Final = 0.02
_GONE: Final = (events.TeardownFinished, events.Failed, events.Stopped)


@dataclass(eq=False, repr=False, kw_only=True)
class FolderInUse(GpuMemoryError):
    """Another server runs with the same profile; `folder`: of its sockets."""

    folder: str

    @property
    def summary(self) -> str:
        return (
            f"another server has the sockets of its GPU memory in {self.folder}, and would be put to sleep together "
            "with this one. Make a GpuMemory, and a profile with it, for each server."
        )


def new_path() -> Path:
    """Return the path of a folder that nobody can guess, short enough for sockets in it; nothing is made."""
    short = "/tmp"  # noqa: S108  of an unpredictable name
    with suppress(FileNotFoundError):  # nowhere can anything be written: who makes the folder says so
        base = tempfile.gettempdir()
        short = base if len(os.fsencode(base)) <= _LONGEST_BASE else short
    return Path(short) / f"{_PREFIX}{secrets.token_hex(8)}"


def folder_of(child: Child) -> Path | None:
    """Return the folder that the child's environment names; None: it names none."""
    value = child.env.get(VARIABLE)
    return Path(value) if value else None


def sockets(folder: Path) -> list[Path]:
    """Return the sockets in the folder, by the number of their process; those of ended processes may be among them."""
    with suppress(OSError):
        return sorted((path for path in folder.glob("*.sock") if path.stem.isdecimal()), key=lambda it: int(it.stem))
    return []


@dataclass(slots=True)
class PrivateFolder:
    """The folder of one life: made, and taken away when the child is gone.

    Attributes:
        path: where it is; None: nowhere.
        lock: the descriptor that holds its lock, by which others see that its supervisor lives; None: no lock.
    """

    path: Path | None = None
    lock: int | None = None

    def make(self, path: Path) -> None:
        """Make the folder, empty, and take away those whose supervisors were killed.

        Blocks for milliseconds.

        Raises:
            FolderInUse: another server has its sockets there, whose memory would be taken away together with ours.
            OSError: it cannot be made, or is not ours alone.
        """
        if any(map(_listens, sockets(path))):
            raise FolderInUse(folder=os.fspath(path))
        self.remove()
        _sweep(path.parent)
        for _ in range(_TRIES):
            with suppress(FileNotFoundError, BlockingIOError):  # another supervisor looks whether to sweep it
                self.lock = _taken(path)
                self.path = path
                return
            time.sleep(_RETRY_S)
        if path.is_dir():
            raise FolderInUse(folder=os.fspath(path))
        raise FileNotFoundError(f"{path} cannot be made")

    def observe(self, event: events.Event) -> None:
        """Take the folder away when the child has ended, or never began."""
        if isinstance(event, _GONE):
            self.remove()

    def remove(self) -> None:
        """Take the folder away, if there is one."""
        path, self.path = self.path, None
        lock, self.lock = self.lock, None
        if path is not None:
            _empty(path)
            with suppress(OSError):
                path.rmdir()
        if lock is not None:
            os.close(lock)


def _taken(path: Path) -> int:
    """Make a folder, or take one that is there, empty it, and return the descriptor that holds its lock."""
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
        path.chmod(0o700)  # whatever the umask says
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        seen = os.fstat(lock)
        _require_ours(path, seen)
        _lock(lock)
        _empty(path)
        path.stat()  # it is still there
    except BaseException:
        os.close(lock)
        raise
    return lock


def _lock(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        return  # there are no locks here: nobody sweeps either


def _require_ours(path: Path, seen: os.stat_result) -> None:
    if seen.st_uid != os.geteuid() or stat.S_IMODE(seen.st_mode) & 0o077:
        raise PermissionError(f"{path} is not a folder of ours alone")


def _listens(address: Path) -> bool:
    with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_RETRY_S)
        probe.connect(os.fspath(address))
        return True
    return False


def _empty(folder: Path) -> None:
    for left in sockets(folder):
        with suppress(OSError):
            left.unlink()


def _sweep(base: Path) -> None:
    """Remove the folders of supervisors that were killed: nobody holds their locks."""
    for left in base.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            descriptor = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(descriptor).st_uid == os.geteuid():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _empty(left)
                    left.rmdir()
            finally:
                os.close(descriptor)
