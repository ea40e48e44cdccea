"""Search a checkpoint image of gVisor for texts that must not be in it, such as secrets.

gVisor's state file (pkg/state/statefile) is a magic, a JSON header with its length, in older versions a hash of 32
bytes, and a stream of pkg/compressio: the size of a chunk, and for each chunk its length and raw DEFLATE data; newer
versions can leave the compression out, and then keep the memory's pages in files of their own. A file of any other
format is an error: a search of bytes that nobody understands finds nothing, and that would pass for a clean image.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from supervisor.errors import SupervisorError

__all__ = ["ImageUnreadable", "found_in"]

_MAGIC: Final = b"gVisorSF"
_PLAIN: Final = frozenset({"pages.img", "pages_meta.img"})  # the memory, as it was
_HASH_BYTES: Final = 32
_CHUNK_BYTES: Final = 1 << 20  # gVisor's own; before compression
_MAX_BYTES: Final = 1 << 26  # of a header or a compressed chunk


@dataclass(eq=False, repr=False, kw_only=True)
class ImageUnreadable(SupervisorError):
    """A file of the checkpoint image has a format that cannot be searched for secrets.

    Attributes:
        file: its name.
        reason: what is unknown in it.
    """

    file: str
    reason: str

    @property
    def summary(self) -> str:
        return (
            f"the checkpoint image cannot be searched for secrets: {self.reason} in {self.file}. This gVisor writes "
            "images of a format that is not known here, so nobody can say whether secrets of this environment are in "
            "it. Rehearse without those secrets in the environment (`env -u NAME supervise rehearse ...`), or with "
            "another runsc."
        )


def found_in(image: Path, texts: Mapping[str, str]) -> tuple[str, ...]:
    """The names of those texts that occur in an image. Blocks: about a second for every 100 MB.

    A text that straddles two chunks is found too; one that two memory pages hold in pieces is not.

    Args:
        image: the folder with the image's files.
        texts: what to look for, by name; UTF-8.

    Raises:
        ImageUnreadable: a file has a format that cannot be searched.
    """
    wanted = {name: text.encode() for name, text in texts.items() if text}
    overlap = max(map(len, wanted.values()), default=1) - 1
    found: set[str] = set()
    for file in sorted(image.iterdir()):
        before = b""
        for chunk in _chunks(file):
            data = before + chunk
            found |= {name for name, text in wanted.items() if name not in found and text in data}
            if len(found) == len(wanted):
                return tuple(name for name in wanted if name in found)
            before = data[len(data) - overlap :] if overlap else b""
    return tuple(name for name in wanted if name in found)


def _chunks(file: Path) -> Iterator[bytes]:
    if not file.is_file():
        raise ImageUnreadable(file=file.name, reason="something other than a file")
    with file.open("rb") as stream:
        if file.name in _PLAIN:
            yield from _plain(stream)
            return
        try:
            yield from _state(stream)
        except (ValueError, zlib.error, struct.error) as error:
            raise ImageUnreadable(file=file.name, reason=str(error)) from error


def _plain(stream: BinaryIO) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK_BYTES):
        yield chunk


def _state(stream: BinaryIO) -> Iterator[bytes]:
    if stream.read(len(_MAGIC)) != _MAGIC:
        raise ValueError(f"no magic {_MAGIC.decode()}")
    length = _number(stream, ">Q")
    if length > _MAX_BYTES:
        raise ValueError(f"a header of {length} bytes")
    header = json.loads(stream.read(length))
    compression = header.get("compression", "flate-best-speed") if isinstance(header, dict) else None
    if compression == "none":
        yield from _plain(stream)
        return
    if compression != "flate-best-speed":
        raise ValueError(f"the compression {compression!r}")
    if _number(stream, ">I") != _CHUNK_BYTES:
        stream.seek(_HASH_BYTES - 4, 1)  # those were the first bytes of a hash
        if (size := _number(stream, ">I")) != _CHUNK_BYTES:
            raise ValueError(f"chunks of {size} bytes")
    while head := stream.read(4):
        (length,) = struct.unpack(">I", head)
        if length > _MAX_BYTES:
            raise ValueError(f"a chunk of {length} bytes")
        yield zlib.decompress(stream.read(length), wbits=-zlib.MAX_WBITS)


def _number(stream: BinaryIO, layout: str) -> int:
    return int(struct.unpack(layout, stream.read(struct.calcsize(layout)))[0])
