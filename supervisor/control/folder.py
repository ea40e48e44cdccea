"""The private folder of control sockets: found, made, checked, swept. One `<pid>.sock` a supervisor, of this user's.

Who may enter the folder may stop a server from serving, so it must be ours alone (0700). In /tmp anybody may have made
it first; everything is therefore done through a descriptor of the folder that was checked, never by its path again.
"""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

__all__ = ["Listening", "candidates", "connect", "listening", "opened", "sockets"]

_SOCKET: Final = re.compile(r"(\d+)(?:-\d+)?\.sock")
_UNBORN: Final = re.compile(r"(\d+)\.new")
_BACKLOG: Final = 32
_TRIES: Final = 5


def candidates() -> tuple[Path, ...]:
    """Return where supervisors of this user put their sockets; a new one takes the first.

    Both are looked at by clients, because a service and a login shell of one user differ in XDG_RUNTIME_DIR. One that
    belongs to somebody else was inherited through `su` or `sudo`, and is no place for our files.
    """
    own = Path(f"/tmp/warmboot-{os.geteuid()}")  # noqa: S108  checked: see `opened`
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or "/nowhere")
    with suppress(OSError):
        if runtime.is_absolute() and runtime.stat().st_uid == os.geteuid():
            return runtime / "warmboot", own
    return (own,)


@contextmanager
def opened(folder: Path) -> Iterator[int]:
    """A descriptor of a folder that is ours alone.

    Raises:
        PermissionError: it is a link or no folder, somebody else's, or open to others.
        OSError: it is not there, or cannot be opened.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except NotADirectoryError as error:
        raise PermissionError(f"{folder} is a link or no folder: remove it") from error
    try:
        seen = os.fstat(descriptor)
        if seen.st_uid != os.geteuid():
            raise PermissionError(f"{folder} belongs to user {seen.st_uid}: have it removed, or set XDG_RUNTIME_DIR")
        if seen.st_mode & 0o077:
            raise PermissionError(f"{folder} is open to others (mode {stat.S_IMODE(seen.st_mode):04o}): chmod 700 it")
        yield descriptor
    finally:
        os.close(descriptor)


class Listening:
    """A socket that listens in the folder under the name of this process.

    Attributes:
        socket: accepts connections; does not block.
        path: where it is.
    """

    def __init__(self, folder: Path) -> None:
        with opened(folder) as descriptor:
            _sweep(descriptor)
            name = _free_name(descriptor)
            self.path = folder / name
            self.socket = _bound(descriptor, name)
            self._inode = os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_ino

    def close(self) -> None:
        """Stops listening and removes the socket, and the folder where nobody else needs it."""
        self.socket.close()
        with suppress(OSError), opened(self.path.parent) as descriptor:
            if os.stat(self.path.name, dir_fd=descriptor, follow_symlinks=False).st_ino == self._inode:
                os.unlink(self.path.name, dir_fd=descriptor)
            self.path.parent.rmdir()


def listening() -> Listening:
    """Listen in the first folder of `candidates`, which is made if need be.

    Raises:
        OSError: that is not possible; the text says why.
    """
    folder = candidates()[0]
    for last in (*[False] * _TRIES, True):
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            pass
        else:
            folder.chmod(0o700)  # whatever the umask says
        try:
            return Listening(folder)
        except FileNotFoundError:  # another supervisor has ended and taken the empty folder with it
            if last:
                raise
    raise AssertionError


def sockets(descriptor: int) -> list[str]:
    """Return the names of the sockets in a folder."""
    return sorted(name for name in os.listdir(descriptor) if _SOCKET.fullmatch(name))


def pid_of(name: str) -> int:
    """Return the pid in a socket's name: its supervisor's."""
    found = _SOCKET.fullmatch(name)
    assert found
    return int(found[1])


def connect(descriptor: int, name: str, *, wait: bool = False) -> socket.socket:
    """Connect to a socket in a folder; `wait`: also until there is room, and the connection blocks.

    Raises:
        ConnectionRefusedError: nobody listens there any more.
        OSError: as connect(2); BlockingIOError when too many wait there already.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(wait)
        connection.connect(_through(descriptor, name))
    except BaseException:
        connection.close()
        raise
    return connection


def _through(descriptor: int, name: str) -> str:
    # Not the path: it may lead elsewhere by now, and may be longer than the 107 bytes that a socket's address has.
    return f"/proc/self/fd/{descriptor}/{name}"


def _bound(descriptor: int, name: str) -> socket.socket:
    # Under another name until it listens, so that a refused connection always means a supervisor that is gone.
    unborn = f"{os.getpid()}.new"
    with suppress(FileNotFoundError):
        os.unlink(unborn, dir_fd=descriptor)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.bind(_through(descriptor, unborn))
        os.chmod(unborn, 0o600, dir_fd=descriptor)  # whatever the umask says
        listener.listen(_BACKLOG)
        os.rename(unborn, name, src_dir_fd=descriptor, dst_dir_fd=descriptor)
    except BaseException:
        listener.close()
        raise
    return listener


def _free_name(descriptor: int) -> str:
    """Return a name for this process; in another container that shares the folder one may have the same pid."""
    taken = set(os.listdir(descriptor))
    number, name = 1, f"{os.getpid()}.sock"
    while name in taken:
        number += 1
        name = f"{os.getpid()}-{number}.sock"
    return name


def _sweep(descriptor: int) -> None:
    """Remove the sockets of supervisors that were killed: nobody listens there."""
    for name in sockets(descriptor):
        try:
            connect(descriptor, name).close()
        except ConnectionRefusedError:
            with suppress(OSError):
                os.unlink(name, dir_fd=descriptor)
        except OSError:
            pass  # somebody listens, or it is gone
    for name in os.listdir(descriptor):
        unborn = _UNBORN.fullmatch(name)
        if unborn and not Path(f"/proc/{unborn[1]}").exists():
            with suppress(OSError):
                os.unlink(name, dir_fd=descriptor)
