"""One at a time on this host."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from modal_entry.pipeline.commands import emit

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["host_lock"]


@contextmanager
def host_lock(root: Path, name: str) -> Iterator[None]:
    """Hold the lock of `name` in `root` against the other processes and threads of this host; waits without limit.

    The lock file lies in the host's temporary directory, not on the volume: each container has a mount of its own, and
    no lock on it would reach the others. The kernel lets go when the holder dies.
    """
    key = hashlib.sha256(f"{root.resolve()}\0{name}".encode()).hexdigest()[:24]
    path = Path(tempfile.gettempdir()) / f"warmboot-{os.getuid()}-{key}.lock"
    # O_NOFOLLOW: the directory is everybody's.
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            emit("lock.waiting", root=str(root), name=name)
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
