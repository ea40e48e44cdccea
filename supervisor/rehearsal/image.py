"""What lies in a checkpoint image: a search for texts that should not have got there.

gVisor's state file (pkg/state/statefile): the magic, a JSON header with its length, a hash of 32 bytes; then a stream
of pkg/compressio: the size of a chunk, and for each chunk its length and raw DEFLATE data. Other files of an image, and
state files of another shape, are searched as they are.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

__all__ = ["found_in"]

_MAGIC: Final = b"gVisorSF"
_HASH_BYTES: Final = 32
_CHUNK_BYTES: Final = 1 << 20
_MAX_CHUNK_BYTES: Final = 1 << 26


def found_in(image: Path, texts: Mapping[str, str]) -> tuple[str, ...]:
    """The names of those texts that occur in an image. Blocks: about a second for every 100 MB.

    A text that straddles two chunks is found too; one that two memory pages hold in pieces is not.

    Args:
        image: the folder with the image's files.
        texts: what to look for, by name; UTF-8.
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
    try:
        yield from _inflated(file)
    except (ValueError, zlib.error, struct.error):
        with file.open("rb") as raw:
            while chunk := raw.read(_CHUNK_BYTES):
                yield chunk


def _inflated(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:

        def number(layout: str) -> int:
            return int(struct.unpack(layout, stream.read(struct.calcsize(layout)))[0])

        if stream.read(len(_MAGIC)) != _MAGIC:
            raise ValueError("no state file")
        header = number(">Q")
        if header > _MAX_CHUNK_BYTES:
            raise ValueError("no header")
        stream.seek(header + _HASH_BYTES, 1)
        number(">I")  # the size of a chunk, inflated
        while head := stream.read(4):
            (length,) = struct.unpack(">I", head)
            if length > _MAX_CHUNK_BYTES:
                raise ValueError("no chunk")
            yield zlib.decompress(stream.read(length), wbits=-zlib.MAX_WBITS)
