"""Reading and writing whole files: a hash of the content, and a write that no reader sees half of."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["sha256_of", "write_atomically"]


def sha256_of(path: Path) -> str:
    """The hash of a file, as lower-case hexadecimal; blocks while all of it is read (about 1 s a GB)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that every reader, after a crash too, sees the old content or the new, never a part.

    A process that is killed in the middle leaves a file beside it whose name is `.NAME.` and eight digits.

    Raises:
        OSError: it cannot be written; the old content is still there.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with beside.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the new name too must survive a crash
    finally:
        os.close(directory)
