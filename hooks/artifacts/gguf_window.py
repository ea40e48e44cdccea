"""Reading a header that may be hostile: through a window of fixed size, with limits on every length."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Literal, NoReturn

__all__ = ["GgufError", "Problem", "Window"]

Problem = Literal["unreadable", "not a GGUF", "unsupported", "truncated", "implausible"]

MAX_HEADER_BYTES: Final = 1 << 27  # vocabularies of 260,000 tokens make headers of about 16 MiB
WINDOW_BYTES: Final = 1 << 18

_U32: Final = struct.Struct("<I")
_U64: Final = struct.Struct("<Q")


@dataclass(eq=False)
class GgufError(Exception):
    """The file is no GGUF, or not a whole one.

    Attributes:
        path: of the file.
        problem: the kind of fault.
        detail: what was seen where.
    """

    path: Path
    problem: Problem
    detail: str

    def __post_init__(self) -> None:
        super().__init__(self.path, self.problem, self.detail)  # pickle rebuilds an exception from its args

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}: {self.detail}"


class Window:
    """One pass over the beginning of a file. Whatever reads past its end, or past 128 MiB, raises `GgufError`.

    Attributes:
        size: of the file, bytes.
        what: what is being read; for errors.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.size = os.fstat(file.fileno()).st_size
        self.what = "the magic"
        self._path = path
        self._file = file
        self._data = b""
        self._start = 0  # of the window in the file
        self._at = 0  # in the window; beyond its end after a skip

    @property
    def position(self) -> int:
        """In the file."""
        return self._start + self._at

    def fail(self, problem: Problem, detail: str) -> NoReturn:
        """Raises the error for this file."""
        raise GgufError(self._path, problem, detail)

    def check_room(self, count: int) -> None:
        """The next `count` bytes must lie in the file, and in what a header may be."""
        end = self.position + count
        if end > self.size:
            self.fail("truncated", f"the header needs {end} bytes up to {self.what}, the file has {self.size}")
        if end > MAX_HEADER_BYTES:
            self.fail("implausible", f"the header is longer than {MAX_HEADER_BYTES} bytes, at {self.what}")

    def peek(self, count: int) -> bytes:
        """The next bytes; fewer at the end of the file."""
        if len(self._data) - self._at < count:
            self._start += self._at
            self._file.seek(self._start)
            self._data, self._at = self._file.read(max(count, WINDOW_BYTES)), 0
        return self._data[self._at : self._at + count]

    def take(self, count: int) -> bytes:
        """The next bytes, and past them; the caller bounds `count`."""
        self.check_room(count)
        data = self.peek(count)
        if len(data) < count:  # it shrank under our hands
            self.fail("truncated", f"the file ended at {self.what}")
        self._at += count
        return data

    def skip(self, count: int) -> None:
        """Past so many bytes, unread."""
        self.check_room(count)
        self._at += count

    def skip_strings(self, count: int) -> None:
        """Past so many strings; vocabularies have hundreds of thousands, hence the tight loop."""
        self.check_room(8 * count)
        while count:
            self.check_room(8)
            if len(self.peek(8)) < 8:
                self.fail("truncated", f"the file ended at {self.what}")
            data, at, last = self._data, self._at, len(self._data) - 8
            while count and at <= last:
                at += 8 + _U64.unpack_from(data, at)[0]
                count -= 1
            self._at = at
        self.check_room(0)

    def u32(self) -> int:
        """The next number of 4 bytes, little-endian."""
        return int(_U32.unpack(self.take(4))[0])

    def u64(self) -> int:
        """The next number of 8 bytes, little-endian."""
        return int(_U64.unpack(self.take(8))[0])

    def name(self, limit: int) -> str:
        """The next string, which must not be longer than `limit` bytes."""
        length = self.u64()
        if length > limit:
            self.fail("implausible", f"{self.what} has a name of {length} bytes; at most {limit} are possible")
        return self.take(length).decode(errors="replace")

    def text(self, limit: int) -> str:
        """The first `limit` bytes of the next string; the rest is skipped."""
        length = self.u64()
        self.check_room(length)
        text = self.take(min(length, limit)).decode(errors="replace")
        self.skip(max(0, length - limit))
        return text
