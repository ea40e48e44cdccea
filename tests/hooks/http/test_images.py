"""Answers of image servers: what is a picture of the size that was asked for, and what is not."""

from __future__ import annotations

import json
import struct
import zlib
from base64 import b64encode
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hooks.http.answer import Answer, BadAnswer
from hooks.http.images import pictures, size_of
from hooks.http.picture import red_square, scene
from hooks.warmup import liveness_after
from hooks.warmup.request_file import RawJson
from supervisor.child import Child
from supervisor.dialect import Dialect
from supervisor.redact import Redactor
from tools.serve import running_raw

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
PNG = red_square(64)
# A file of one frame and no scan: its header is what is read.
JPEG = b"\xff\xd8\xff\xe0" + struct.pack(">H", 4) + b"JF" + b"\xff\xc2" + struct.pack(">HB2H", 11, 8, 48, 32) + bytes(4)
JPEG += b"\xff\xd9"


def answered(*files: bytes | str, **more: Any) -> bytes:
    """The body of an image server's answer."""
    rows = [{"b64_json": file if isinstance(file, str) else b64encode(file).decode()} for file in files]
    return json.dumps({"created": 1, "data": rows, **more}).encode()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (PNG, (64, 64)),
        (scene(48), (48, 48)),
        (JPEG, (32, 48)),
        (JPEG + b"\0\0", (32, 48)),
        (PNG[:-1], None),
        (PNG[:60], None),
        (PNG[:40] + b"\0" + PNG[41:], None),
        (PNG[:-12], None),
        (b"\x89PNG\r\n\x1a\n", None),
        (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes(13)) + chunk(b"IEND", b""), None),
        (
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", struct.pack(">2I5B", 64, 64, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(b"short"))
            + chunk(b"IEND", b""),
            None,
        ),
        (JPEG[:-2], None),
        (b"\xff\xd8\xff\xd9", None),
        (b"GIF89a", None),
        (b"", None),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_sizes_are_read_from_whole_files_only(data: bytes, size: tuple[int, int] | None) -> None:
    """PNG and JPEG tell their size; what is cut off, damaged, empty or something else has none."""
    assert size_of(data) == size


@pytest.mark.parametrize(
    ("body", "asked", "words"),
    [
        (answered(PNG), {"size": "64x64"}, None),
        (answered(PNG), {}, None),
        (answered(JPEG), {"size": "32x48"}, None),
        (answered(PNG, PNG), {"n": 2}, None),
        (answered(PNG), {"n": 2}, "holds 1 pictures instead of 2"),
        (answered(PNG), {"size": "128x64"}, r"data\[0\] is a picture of 64x64 instead of 128x64"),
        (answered(PNG, PNG[:90]), {"n": 2}, r"data\[1\].b64_json is no whole PNG or JPEG"),
        (answered("%%%"), {}, r"data\[0\].b64_json is no base64"),
        (answered(), {}, "no pictures in data"),
        (b'{"data": [{"url": "http://x"}]}', {}, r"data\[0\] has no b64_json"),
        (b'{"data": null}', {}, "no pictures in data"),
        (b'{"error": {"message": "out of memory"}}', {}, "an error: out of memory"),
    ],
)
def test_an_answer_holds_what_was_asked_for(body: bytes, asked: dict[str, Any], words: str | None) -> None:
    """As many pictures as asked for, of the size asked for, and whole; else the words say what came instead."""
    answer = Answer(status=200, body=body.decode(), redact=Redactor(()))
    if words is None:
        assert len(pictures(answer, asked)) == asked.get("n", 1)
    else:
        with pytest.raises(BadAnswer, match=words):
            pictures(answer, asked)


def drawing(child: Child) -> Child:
    """The same child, of an engine that draws on a route of its own."""
    dialect = Dialect(engine="painter", chat_path=None, images_path="/draw", fewest_tokens={"steps": 1})
    return replace(child, profile=replace(child.profile, dialect=dialect))


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/draw", "/v1/images/generations"])
async def test_a_warmup_from_a_file_takes_pictures(tmp_path: Path, path: str) -> None:
    """`--warmup FILE` with a request for an image judges the picture, and the watchdog repeats it with one step."""
    asked: list[str] = []
    file = tmp_path / "draw.json"
    file.write_text(json.dumps({"path": path, "body": {"prompt": "a hill", "size": "64x64", "steps": 9}}))
    step = RawJson(path=file)

    def draw(head: str) -> bytes:
        asked.append(head)
        return HEAD + answered(PNG, note="x" * (5 << 20))  # large pictures are longer than any text

    with running_raw(draw) as child:
        await step(drawing(child))
        (again,) = liveness_after((step,))
        await again(drawing(child))
    assert [f"POST {path} " in head for head in asked] == [True, True]
    with running_raw(lambda _: HEAD + answered(scene(48))) as child, pytest.raises(BadAnswer, match="48x48"):
        await step(drawing(child))
