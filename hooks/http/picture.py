"""Pictures for a vision tower, made here: PNG, 8-bit RGB (https://www.w3.org/TR/png-3/#5DataRep)."""

from __future__ import annotations

import struct
import zlib
from binascii import b2a_base64
from collections.abc import Iterable
from typing import Any

__all__ = ["content", "red_square", "scene"]


def content(prompt: str, png: bytes) -> list[dict[str, Any]]:
    """The content of a chat message: words, and a picture as data URL."""
    url = "data:image/png;base64," + b2a_base64(png, newline=False).decode()
    return [{"type": "text", "text": prompt}, {"type": "image_url", "image_url": {"url": url}}]


def red_square(side: int) -> bytes:
    """A square of one colour."""
    return _png(side, [b"\xff\0\0" * side] * side)


def scene(side: int) -> bytes:
    """A yellow disc before colours that change from pixel to pixel, so that every patch of a tower sees another."""
    disc, middle = (side // 3) ** 2, side // 2

    def colour(x: int, y: int) -> bytes:
        if (x - middle) ** 2 + (y - middle) ** 2 <= disc:
            return b"\xff\xd0\0"
        return bytes((x * 255 // side, y * 255 // side, 128))

    return _png(side, [b"".join(colour(x, y) for x in range(side)) for y in range(side)])


def _png(side: int, rows: Iterable[bytes]) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">2I5B", side, side, 8, 2, 0, 0, 0)
    data = b"".join(b"\0" + row for row in rows)  # each row begins with its filter: none
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
