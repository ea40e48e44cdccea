"""Lines come out the same however the bytes come in, in bounded memory, and every byte is accounted for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from supervisor.logs.lines import LineSplitter

LIMIT = 8
Lines = list[tuple[bytes, bool]]

# Few different bytes, so that line breaks and long lines are frequent.
DATA = st.one_of(st.binary(max_size=200), st.lists(st.sampled_from([b"a", b"\n", b"\r", b"bbb"])).map(b"".join))
CHUNKS = st.lists(st.one_of(st.binary(max_size=30), st.sampled_from([b"", b"\n", b"a\n", b"a" * LIMIT])), max_size=20)


def fed(splitter: LineSplitter, *chunks: bytes) -> Lines:
    return [line for chunk in chunks for line in splitter.feed(chunk)]


def reference(data: bytes, limit: int) -> tuple[Lines, bytes, int]:
    """What a splitter with all the memory in the world would say: lines, the unfinished one, bytes lost."""
    *whole, last = data.split(b"\n")
    lines = [(line[:limit], len(line) > limit) for line in whole]
    if len(last) > limit:
        lines.append((last[:limit], True))
    lost = sum(max(0, len(line) - limit) for line in [*whole, last])
    return lines, b"" if len(last) > limit else last, lost


@given(DATA, st.integers(1, 20))
def test_lines_are_what_a_plain_split_gives(data: bytes, limit: int) -> None:
    """Split at line breaks, cut at the limit: nothing more."""
    splitter = LineSplitter(limit)
    assert (fed(splitter, data), splitter.partial(), splitter.lost_bytes) == reference(data, limit)


@given(CHUNKS)
def test_chunking_changes_nothing(chunks: list[bytes]) -> None:
    """Any chunks of the same bytes give the same lines, the same rest and the same count."""
    pieces, whole = LineSplitter(LIMIT), LineSplitter(LIMIT)
    assert fed(pieces, *chunks) == fed(whole, b"".join(chunks))
    assert (pieces.partial(), pieces.lost_bytes, pieces.lost_lines) == (whole.partial(), whole.lost_bytes, 0)


@given(CHUNKS, st.integers(1, 20))
def test_every_byte_is_accounted_for(chunks: list[bytes], limit: int) -> None:
    """Kept, lost and line breaks add up to the input."""
    splitter = LineSplitter(limit)
    kept = sum(len(line) for line, _ in fed(splitter, *chunks)) + len(splitter.partial())
    data = b"".join(chunks)
    assert kept + splitter.lost_bytes + data.count(b"\n") == len(data)


@given(CHUNKS, st.integers(1, 20))
def test_memory_is_bounded(chunks: list[bytes], limit: int) -> None:
    """No more than a line's limit is ever held, and no line is longer."""
    splitter = LineSplitter(limit)
    for chunk in chunks:
        assert all(len(line) <= limit for line, _ in splitter.feed(chunk))
        assert len(splitter.partial()) <= limit


def test_a_line_of_exactly_the_limit_is_whole() -> None:
    """The limit is what still fits."""
    splitter = LineSplitter(4)
    assert fed(splitter, b"abcd\nabcde\n") == [(b"abcd", False), (b"abcd", True)]
    assert splitter.lost_bytes == 1


def test_a_long_line_is_cut_once() -> None:
    """The rest of a cut line does not come out as lines of its own."""
    splitter = LineSplitter(4)
    assert fed(splitter, b"abcdefgh", b"ijkl", b"mn\nok\n") == [(b"abcd", True), (b"ok", False)]
    assert splitter.lost_bytes == 10


def test_a_gap_ends_trust_until_the_next_line() -> None:
    """Where input is missing, neither the line that was begun nor the line that goes on is shown, and both count."""
    splitter = LineSplitter(100)
    assert fed(splitter, b"one\nbegun") == [(b"one", False)]
    splitter.gap()
    assert splitter.partial() == b""
    assert fed(splitter, b"end\ntwo\n") == [(b"two", False)]
    assert (splitter.lost_lines, splitter.lost_bytes) == (1, len("begun") + len("end\n"))


def test_a_gap_within_a_cut_line_loses_no_other_line() -> None:
    """A cut line has been shown already: its missing end is not another lost line."""
    splitter = LineSplitter(4)
    assert fed(splitter, b"abcdef") == [(b"abcd", True)]
    splitter.gap()
    assert fed(splitter, b"gh\nok\n") == [(b"ok", False)]
    assert splitter.lost_lines == 0


@st.composite
def holes(draw: st.DrawFn) -> tuple[list[bytes], set[int]]:
    """Chunks, and which of them go missing (never the last)."""
    chunks = draw(st.lists(st.lists(st.sampled_from([b"a", b"\n"])).map(b"".join), min_size=2, max_size=12))
    return chunks, draw(st.sets(st.integers(0, len(chunks) - 2)))


@given(holes())
def test_with_gaps_every_line_is_kept_or_counted(case: tuple[list[bytes], set[int]]) -> None:
    """Lines kept, lines lost in the gaps, and lines that a gap beheaded are all the lines that were written."""
    chunks, missing = case
    splitter = LineSplitter(1000)
    kept: list[bytes] = []
    gone: list[bytes] = []
    for i, chunk in enumerate(chunks):
        if i in missing:
            gone.append(chunk)
            continue
        if i - 1 in missing:
            splitter.gap()
        kept += [line + b"\n" for line, _ in splitter.feed(chunk)]
    written, lost = b"".join(chunks), b"".join(gone)
    assert len(kept) + lost.count(b"\n") + splitter.lost_lines == written.count(b"\n")
    kept_bytes = sum(map(len, kept)) + len(splitter.partial())
    assert kept_bytes + len(lost) + splitter.lost_bytes == len(written)
