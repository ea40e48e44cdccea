"""The golden answer of an engine that draws: the pixels of a seeded picture."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from hooks.golden import Golden, GoldenMismatch
from hooks.http import picture
from hooks.http.answer import BadAnswer
from supervisor import Child
from supervisor.dialect import Dialect
from supervisor.errors import ProfileError
from tools.serve import running_raw

pytestmark = pytest.mark.anyio

DRAWS = Dialect(engine="draws", chat_path=None, images_path="/v1/images/generations")
SMALL = Golden(size="8x8")
JPEG = b"\xff\xd8\xff\xc0\x00\x0b\x08\x00\x08\x00\x08\x01\x01\x11\x00%s\xff\xd9"


def answer(image: bytes) -> bytes:
    body = json.dumps({"data": [{"b64_json": b64encode(image).decode()}]})
    return f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{body}".encode()


@contextmanager
def drawing(*images: bytes) -> Iterator[Child]:
    """A server that answers with one picture after the other, the last one for ever."""
    rest = list(images)
    script: Callable[[str], bytes] = lambda _: answer(rest.pop(0) if len(rest) > 1 else rest[0])  # noqa: E731
    with running_raw(script) as child:
        yield replace(child, profile=replace(child.profile, dialect=DRAWS))


def scene(change: int = 0) -> bytes:
    """A picture of 8x8 pixels; `change` is added to one sample of the 192."""
    png = picture.scene(8)
    if not change:
        return png
    rows = [bytearray(row) for row in _rows(png)]
    rows[0][0] += change
    return picture._png(8, [bytes(row) for row in rows])


def _rows(png: bytes) -> list[bytes]:
    from hooks.http.png import pixels_of

    found = pixels_of(png)
    assert found
    return [found.samples[24 * y : 24 * (y + 1)] for y in range(8)]


async def test_the_same_pixels_pass() -> None:
    """Recorded and replayed, as often as wanted."""
    with drawing(scene()) as child:
        await SMALL.record(child)
        await SMALL.replay(child)
        await SMALL.replay(child)


async def test_what_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """One picture of the golden's size, prompt and seed, in base64."""
    asked: list[dict[str, Any]] = []

    async def keep(_: Child, path: str, body: dict[str, Any], **__: Any) -> Any:
        asked.append(body)
        raise BadAnswer("enough", None, path)

    monkeypatch.setattr("hooks.golden.drawing.ask", keep)
    with drawing(scene()) as child, pytest.raises(BadAnswer, match="enough"):
        await Golden(prompt="a lighthouse", seed=7).record(child)
    assert asked == [
        {
            "model": "fake-model",
            "prompt": "a lighthouse",
            "n": 1,
            "size": "256x256",
            "response_format": "b64_json",
            "temperature": 0,
            "seed": 7,
        }
    ]


async def test_other_pixels_are_a_mismatch() -> None:
    """One sample of 192 that is another is found; how far apart the pictures are is said."""
    golden = Golden(size="8x8")
    with drawing(scene(), scene(), scene(96)) as child:
        await golden.record(child)
        with pytest.raises(GoldenMismatch) as caught:
            await golden.replay(child)
    assert "the pixels are 0.5 of 255 apart in the mean, more than the tolerance of 0" in caught.value.reason
    assert caught.value.expected.startswith("8x8 pixels, sha256 ")
    assert caught.value.expected != caught.value.seen


async def test_a_stated_distance_is_allowed() -> None:
    """Pictures no further apart than `pixel_tolerance` are the same."""
    golden = Golden(size="8x8", pixel_tolerance=0.5)
    with drawing(scene(), scene(), scene(96)) as child:
        await golden.record(child)
        await golden.replay(child)


async def test_a_server_that_does_not_repeat_itself_is_not_recorded() -> None:
    """The record asks twice; the remedy is the one for pictures."""
    words = r"does not repeat itself.*raise the pixel_tolerance"
    with drawing(scene(), scene(1)) as child, pytest.raises(GoldenMismatch, match=words):
        await Golden(size="8x8").record(child)


async def test_a_picture_of_one_colour_is_never_recorded() -> None:
    """It is what a model draws whose numbers went wrong; at a replay it is a mismatch."""
    golden = Golden(size="8x8")
    with drawing(picture.red_square(8)) as child, pytest.raises(BadAnswer, match="one colour only"):
        await golden.record(child)
    with drawing(scene(), scene(), picture.red_square(8)) as child:
        await golden.record(child)
        with pytest.raises(GoldenMismatch, match="one colour only"):
            await golden.replay(child)


async def test_a_jpeg_is_compared_as_a_file() -> None:
    """Its pixels cannot be read here, so every byte must be the same."""
    golden = Golden(size="8x8", pixel_tolerance=255)
    one, other = JPEG % b"a", JPEG % b"b"
    with drawing(one, one, one, other) as child:
        await golden.record(child)
        await golden.replay(child)
        with pytest.raises(GoldenMismatch, match="the file of the picture is another one"):
            await golden.replay(child)


@pytest.mark.parametrize(
    ("field", "value"),
    [("size", "8"), ("size", "8X8"), ("size", "0x8"), ("pixel_tolerance", -1), ("pixel_tolerance", 256)],
)
def test_settings_are_checked(field: str, value: Any) -> None:
    """A setting that makes no sense names itself."""
    with pytest.raises(ProfileError, match=rf"golden text\.{field}"):
        Golden(**{field: value})
