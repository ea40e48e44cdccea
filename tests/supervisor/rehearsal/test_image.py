"""The search of a checkpoint image: texts are found in every known format, and an unknown one is an error."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest

from supervisor.rehearsal.image import ImageUnreadable, found_in

SECRET = "hf_planted_and_not_needed"


HASH = b"\x80" * 32


def state_file(path: Path, *chunks: bytes, header: bytes = b'{"_timestamp":"now"}', digest: bytes = HASH) -> None:
    """A compressed state file as gVisor writes it."""
    with path.open("wb") as out:
        out.write(b"gVisorSF" + struct.pack(">Q", len(header)) + header + digest + struct.pack(">I", 1 << 20))
        for chunk in chunks:
            packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
            data = packer.compress(chunk) + packer.flush()
            out.write(struct.pack(">I", len(data)) + data)


@pytest.mark.parametrize("cut", range(len(SECRET) + 1))
def test_a_text_is_found_wherever_chunks_part_it(tmp_path: Path, cut: int) -> None:
    """Compressed chunks are opened, and a text across two of them is whole."""
    text = SECRET.encode()
    state_file(tmp_path / "checkpoint.img", b"x" * 1000 + text[:cut], text[cut:] + b"y" * 1000)
    assert text not in (tmp_path / "checkpoint.img").read_bytes()
    assert found_in(tmp_path, {"HF_TOKEN": SECRET, "OTHER": "is-not-in-it"}) == ("HF_TOKEN",)


def test_newer_versions_write_no_hash(tmp_path: Path) -> None:
    """A header that names its compression may be followed by the stream at once."""
    header = b'{"compression":"flate-best-speed"}'
    state_file(tmp_path / "checkpoint.img", b"x" * 1000 + SECRET.encode(), header=header, digest=b"")
    assert found_in(tmp_path, {"HF_TOKEN": SECRET, "OTHER": "is-not-in-it"}) == ("HF_TOKEN",)


@pytest.mark.parametrize("head", [b"", b"gVisorSF", b"gVisorSF" + b"\xff" * 8])
def test_pages_without_compression_are_searched_as_they_are(tmp_path: Path, head: bytes) -> None:
    """Without compression the memory lies in a file of its own, and the state file says `none`."""
    header = b'{"compression":"none"}'
    (tmp_path / "checkpoint.img").write_bytes(b"gVisorSF" + struct.pack(">Q", len(header)) + header + b"kernel-state")
    (tmp_path / "pages.img").write_bytes(head + b"x" * ((1 << 20) - 5) + SECRET.encode())
    assert found_in(tmp_path, {"HF_TOKEN": SECRET}) == ("HF_TOKEN",)
    assert found_in(tmp_path, {"STATE": "kernel-state"}) == ("STATE",)
    assert found_in(tmp_path, {"OTHER": "is-not-in-it"}) == ()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("checkpoint.img", b"", "no magic gVisorSF"),
        ("checkpoint.img", b"\x28\xb5\x2f\xfd of another compression", "no magic gVisorSF"),
        ("memory.zst", b"gVisorXX", "no magic gVisorSF"),
        ("checkpoint.img", b"gVisorSF", "unpack requires a buffer"),
        ("checkpoint.img", b"gVisorSF" + b"\xff" * 8, "a header of"),
        ("checkpoint.img", b"gVisorSF" + bytes(60), "Expecting value"),
        ("checkpoint.img", b"gVisorSF" + struct.pack(">Q", 22) + b'{"compression":"zstd"}', "the compression 'zstd'"),
        ("checkpoint.img", b"gVisorSF" + struct.pack(">Q", 2) + b"{}" + bytes(60), "chunks of 0 bytes"),
    ],
)
def test_an_unknown_format_is_an_error(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    """What cannot be read might hold anything, so that its search does not pass."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageUnreadable, match=f"cannot be searched for secrets: {reason}.* in {name}") as caught:
        found_in(tmp_path, {"HF_TOKEN": SECRET})
    assert caught.value.cli_status == 1


def test_a_damaged_chunk_is_an_error(tmp_path: Path) -> None:
    """A state file whose stream cannot be inflated to its end was not searched to its end."""
    state_file(tmp_path / "checkpoint.img", b"x" * 1000, b"y" * 1000)
    content = (tmp_path / "checkpoint.img").read_bytes()
    (tmp_path / "checkpoint.img").write_bytes(content[:-3])
    with pytest.raises(ImageUnreadable):
        found_in(tmp_path, {"HF_TOKEN": SECRET})


def test_a_folder_in_the_image_is_an_error(tmp_path: Path) -> None:
    """Only files are known."""
    (tmp_path / "fs").mkdir()
    with pytest.raises(ImageUnreadable, match="something other than a file in fs"):
        found_in(tmp_path, {"HF_TOKEN": SECRET})
