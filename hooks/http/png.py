"""The pixels of a PNG file, so that two pictures can be compared without a library for pictures.

Layout and filters: https://www.w3.org/TR/png-3/ (sections 9 and 11). Only what image servers write: 8 bits a channel,
no palette, not interlaced.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import Final

from hooks.http.images import png_chunks

__all__ = ["Pixels", "pixels_of"]

_CHANNELS: Final = {0: 1, 2: 3, 4: 2, 6: 4}  # colour type -> samples a pixel: grey, RGB, each with alpha or without
_MOST_BYTES: Final = 1 << 27  # 6000 x 6000 in RGB


@dataclass(frozen=True, slots=True, kw_only=True)
class Pixels:
    """A picture's samples, row by row from the top, a byte each.

    Attributes:
        width, height: in pixels.
        channels: samples of a pixel.
        samples: width * height * channels of them.
    """

    width: int
    height: int
    channels: int
    samples: bytes = field(repr=False)

    @property
    def is_flat(self) -> bool:
        """Whether all pixels have one colour."""
        return self.samples == self.samples[: self.channels] * (self.width * self.height)

    def distance(self, other: Pixels) -> float:
        """The mean absolute difference of the samples, 0 to 255, of pictures of one size and kind."""
        apart = sum(abs(one - two) for one, two in zip(self.samples, other.samples, strict=True))
        return apart / len(self.samples)


def pixels_of(png: bytes) -> Pixels | None:
    """Decode a whole PNG file; None when it is of another kind than those above, or damaged. Takes 1 us a sample."""
    try:
        chunks = list(png_chunks(png))
        width, height, bits, colour, _, _, interlaced = struct.unpack(">2I5B", chunks[0][1])
        channels = _CHANNELS.get(colour, 0)
        size = height * (1 + width * channels)
        if bits != 8 or interlaced or not channels or not width or not 0 < size <= _MOST_BYTES:
            return None
        rows = zlib.decompressobj().decompress(b"".join(body for kind, body in chunks if kind == b"IDAT"), size)
    except (struct.error, zlib.error, IndexError):
        return None
    if len(rows) != size:
        return None
    samples = _unfiltered(rows, width * channels, channels)
    return None if samples is None else Pixels(width=width, height=height, channels=channels, samples=samples)


def _unfiltered(rows: bytes, length: int, step: int) -> bytes | None:
    """The samples of rows that begin with their filter; `step`: bytes of a pixel."""
    out = bytearray()
    above = bytes(length)
    for at in range(0, len(rows), length + 1):
        row = bytearray(rows[at + 1 : at + 1 + length])
        match rows[at]:
            case 0:
                pass
            case 1:  # the pixel to the left
                for i in range(step, length):
                    row[i] = (row[i] + row[i - step]) & 255
            case 2:  # the pixel above
                row = bytearray((one + two) & 255 for one, two in zip(row, above, strict=True))
            case 3:  # the mean of both
                for i in range(length):
                    left = row[i - step] if i >= step else 0
                    row[i] = (row[i] + (left + above[i]) // 2) & 255
            case 4:  # Paeth: the nearest of left, above and above left to left + above - above left
                for i in range(length):
                    left, corner = (row[i - step], above[i - step]) if i >= step else (0, 0)
                    row[i] = (row[i] + _paeth(left, above[i], corner)) & 255
            case _:
                return None
        out += row
        above = bytes(row)
    return bytes(out)


def _paeth(left: int, above: int, corner: int) -> int:
    by_left, by_above, by_corner = abs(above - corner), abs(left - corner), abs(left + above - 2 * corner)
    if by_left <= by_above and by_left <= by_corner:
        return left
    return above if by_above <= by_corner else corner
