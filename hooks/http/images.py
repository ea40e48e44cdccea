"""The answer of an image server: pictures in base64, and the judgement whether they are what was asked for."""

from __future__ import annotations

import binascii
import re
import struct
import zlib
from base64 import b64decode
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from hooks.http.answer import Answer
    from supervisor.child import Child

__all__ = ["Picture", "are_asked", "pictures", "png_chunks", "size_of"]

_ROUTE: Final = "/v1/images/generations"
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_JPEG: Final = b"\xff\xd8\xff"
# Start-of-frame segments, which tell the size (ITU-T T.81, table B.1); 0xC4, 0xC8 and 0xCC are others.
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One picture of an answer: the file as it came, its kind (`PNG` or `JPEG`), and its sides."""

    data: bytes
    kind: str
    width: int
    height: int


def are_asked(child: Child, path: str) -> bool:
    """Whether a route answers with pictures: the engine's own, or OpenAI's where the engine is not known."""
    return path in (child.profile.dialect.images_path, _ROUTE)


def pictures(answer: Answer, body: Mapping[str, Any]) -> tuple[Picture, ...]:
    """The pictures in the answer of `/v1/images/generations`: whole, as many and as large as the request asked for.

    Args:
        answer: of the server.
        body: of the request; without `size` any size will do.

    Raises:
        BadAnswer: the answer is none, holds other than `n` pictures in `b64_json`, or one that is cut off, is neither
            PNG nor JPEG, or has another size.
    """
    rows = answer.data().get("data")
    if not isinstance(rows, list) or not rows:
        raise answer.bad("the answer holds no pictures in data")
    if len(rows) != (wanted := body.get("n") or 1):
        raise answer.bad(f"the answer holds {len(rows)} pictures instead of {wanted}")
    asked = re.fullmatch(r"(\d+)x(\d+)", str(body.get("size")))
    found = []
    for i, row in enumerate(rows):
        text = row.get("b64_json") if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise answer.bad(f"data[{i}] has no b64_json")
        try:
            data = b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise answer.bad(f"data[{i}].b64_json is no base64 ({error})") from error
        if (size := size_of(data)) is None:
            raise answer.bad(f"data[{i}].b64_json is no whole PNG or JPEG")
        if asked and size != (int(asked[1]), int(asked[2])):
            raise answer.bad(f"data[{i}] is a picture of {size[0]}x{size[1]} instead of {asked[0]}")
        kind = "PNG" if data.startswith(_PNG) else "JPEG"
        found.append(Picture(data=data, kind=kind, width=size[0], height=size[1]))
    return tuple(found)


def size_of(data: bytes) -> tuple[int, int] | None:
    """Width and height of a PNG or JPEG file; None when it is neither, or is cut off or damaged."""
    try:
        if data.startswith(_PNG):
            return _png_size(data)
        if data.startswith(_JPEG) and data.rstrip(b"\0").endswith(b"\xff\xd9"):
            return _jpeg_size(data)
    except (struct.error, zlib.error):
        pass
    return None


def _png_size(data: bytes) -> tuple[int, int] | None:
    """Every chunk's checksum must be right, and the pixels must unpack (https://www.w3.org/TR/png-3/)."""
    chunks = list(png_chunks(data))
    if [kind for kind, _ in chunks[:1]] != [b"IHDR"] or [kind for kind, _ in chunks[-1:]] != [b"IEND"]:
        return None
    width, height = struct.unpack_from(">2I", chunks[0][1])
    pixels = zlib.decompress(b"".join(body for kind, body in chunks if kind == b"IDAT"))
    # A row is at least a byte for its filter and a bit a pixel.
    return (width, height) if width and height and len(pixels) >= height * (1 + (width + 7) // 8) else None


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and body of each chunk of a PNG file; raises zlib.error or struct.error for one that is damaged or cut."""
    at = len(_PNG)
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        (checksum,) = struct.unpack_from(">I", data, at + 8 + length)
        if checksum != zlib.crc32(kind + body):
            raise zlib.error("a chunk is damaged")
        yield kind, body
        at += 12 + length


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    at = 2
    while True:
        mark, kind, length = struct.unpack_from(">BBH", data, at)
        if mark != 0xFF:
            return None
        if kind in _FRAMES:
            height, width = struct.unpack_from(">2H", data, at + 5)
            return (width, height) if width and height else None
        at += 2 + length
