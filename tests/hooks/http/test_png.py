"""Pixels of PNG files: every filter, what is refused, and how far apart two pictures are."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hooks.http import picture
from hooks.http.png import Pixels, pixels_of


def png(width: int, height: int, colour: int, rows: bytes, *, bits: int = 8, interlaced: int = 0) -> bytes:
    """A file with rows that are filtered already."""
    head = struct.pack(">2I5B", width, height, bits, colour, 0, 0, interlaced)
    out = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        out += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return out


def filtered(samples: bytes, length: int, step: int, kinds: list[int]) -> bytes:
    """The rows as an encoder filters them (https://www.w3.org/TR/png-3/#9Filters)."""
    out = bytearray()
    above = bytes(length)
    for number, kind in enumerate(kinds):
        row = samples[number * length : (number + 1) * length]
        out.append(kind)
        for i, sample in enumerate(row):
            left, corner = (row[i - step], above[i - step]) if i >= step else (0, 0)
            estimate = left + above[i] - corner
            nearest = min((left, above[i], corner), key=lambda value, estimate=estimate: abs(estimate - value))  # type: ignore[misc]
            guess = (0, left, above[i], (left + above[i]) // 2, nearest)[kind]
            out.append((sample - guess) & 255)
        above = row
    return bytes(out)


@given(st.data())
def test_what_was_filtered_comes_back(data: st.DataObject) -> None:
    """Any filter in any row, with any number of channels, gives back the samples."""
    colour, channels = data.draw(st.sampled_from([(0, 1), (2, 3), (4, 2), (6, 4)]))
    width, height = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 5))
    samples = data.draw(st.binary(min_size=width * height * channels, max_size=width * height * channels))
    kinds = data.draw(st.lists(st.integers(0, 4), min_size=height, max_size=height))
    found = pixels_of(png(width, height, colour, filtered(samples, width * channels, channels, kinds)))
    assert found == Pixels(width=width, height=height, channels=channels, samples=samples)


def test_our_own_pictures() -> None:
    """A square of one colour is flat, a scene is not; both have their size."""
    square, scene = pixels_of(picture.red_square(8)), pixels_of(picture.scene(8))
    assert square
    assert scene
    assert (square.width, square.height, square.channels, square.is_flat, scene.is_flat) == (8, 8, 3, True, False)


def test_how_far_apart() -> None:
    """The mean over all samples."""
    one, other = (Pixels(width=2, height=1, channels=1, samples=bytes(pair)) for pair in ((0, 255), (10, 255)))
    assert one.distance(other) == other.distance(one) == 5
    assert one.distance(one) == 0


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        picture.scene(8)[:-20],
        picture.scene(8).replace(b"IDAT", b"IDAX"),
        png(1, 1, 2, b"\0abc", bits=16),
        png(1, 1, 3, b"\0a"),
        png(1, 1, 0, b"\0a", interlaced=1),
        png(2, 1, 0, b"\0a"),
        png(1, 1, 0, b"\x05a"),
        png(0, 1, 0, b"\0"),
        png(1 << 20, 1 << 20, 2, b"\0"),
    ],
    ids=["nothing", "head", "cut", "damaged", "16 bits", "palette", "interlaced", "short", "filter", "empty", "huge"],
)
def test_what_cannot_be_read(data: bytes) -> None:
    """None, for what is damaged and for kinds that no image server writes."""
    assert pixels_of(data) is None
