"""The sink writes every event it can, says what it could not, and makes nobody wait for a slow stream."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, TextIO

import pytest

from supervisor.errors import OutOfResources
from supervisor.events import (
    ChildLog,
    ChildReady,
    ChildSpawned,
    Event,
    Level,
    LoadProgress,
    LogDropped,
    Notice,
    StepFailed,
)
from supervisor.logs.sink import Sink, to_dict
from support import EVENT_KINDS as KINDS

UNIX_S = 1_700_000_000.25
STAMP = "2023-11-14T22:13:20.250Z"


def made(kind: type[Event], **own: Any) -> Event:
    return kind(elapsed_s=1.23456789, unix_s=UNIX_S, **own)


def log(line: str, level: Level = "info") -> Event:
    return made(ChildLog, stream="stderr", line=line, line_level=level)


READY = made(ChildReady, waited_s=1.0, url="http://127.0.0.1:1", pid=7)


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@contextmanager
def pipe() -> Iterator[tuple[int, TextIO]]:
    """A pipe's reading end, and its writing end as a text stream, like stderr's."""
    reading, writing = os.pipe()
    stream = os.fdopen(writing, "w", encoding="utf-8")
    try:
        yield reading, stream
    finally:
        stream.close()
        os.close(reading)


def read_all(fd: int, stream: TextIO, sink: Sink) -> list[dict[str, Any]]:
    """Begins to read only now; ends the sink and the stream, and returns every line that was written."""
    data: list[bytes] = []
    reader = threading.Thread(target=lambda: data.extend(iter(lambda: os.read(fd, 1 << 16), b"")))
    reader.start()
    sink.close()
    stream.close()
    reader.join()
    return [json.loads(line) for line in b"".join(data).splitlines()]


def written(*items: Event | str, log_format: str = "json", stream: io.StringIO | None = None) -> str:
    stream = stream or io.StringIO()
    with Sink(stream, "json" if log_format == "json" else "console") as sink:
        for item in items:
            sink.say(item) if isinstance(item, str) else sink(item)
    return stream.getvalue()


# ------------------------------------------------------------------------------------------------ json


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_json_lines_have_the_documented_fields_and_no_others(kind: type[Event]) -> None:
    """`event`, `level`, `timestamp`, `elapsed_s`, then the event's own fields, one object a line."""
    own = {field.name: 1 for field in fields(kind)} | {"line_level": "warning"}
    event = made(kind, **{field.name: own[field.name] for field in fields(kind) if field.name not in _STAMPS})
    text = written(event)
    assert text.endswith("\n") and text.count("\n") == 1
    entry = json.loads(text)
    names = [field.name for field in fields(kind) if field.name not in {*_STAMPS, "line_level"}]
    assert sorted(entry) == sorted(["event", "level", "timestamp", "elapsed_s", *names])
    assert (entry["event"], entry["timestamp"], entry["elapsed_s"]) == (kind.name, STAMP, 1.2346)
    assert entry["level"] == ("warning" if kind is ChildLog else kind.level)


_STAMPS = ("elapsed_s", "unix_s")


def test_json_holds_any_text() -> None:
    """Quotes, line breaks, non-ASCII and half a surrogate pair arrive as what they are."""
    odd = 'a"b\\c\nd é 漢 \ud800'
    assert json.loads(written(log(odd)))["line"] == odd


def test_json_tuples_are_lists() -> None:
    """An argv is a JSON array."""
    entry = json.loads(written(made(ChildSpawned, pid=1, argv=("a", "b"))))
    assert entry["argv"] == ["a", "b"]


def test_to_dict_rounds_times() -> None:
    """Times have four places; whole numbers stay whole."""
    event = made(StepFailed, point="warmup", step="text", took_s=0.123456, reason="x")
    assert to_dict(event)["took_s"] == 0.1235
    assert to_dict(READY)["pid"] == 7


# --------------------------------------------------------------------------------------------- console


def test_console_lines_are_for_people() -> None:
    """A time, the event and its fields on one line; the child's lines as they are; colours only on a terminal."""
    text = written(READY, log("hello from the child"), "said", log_format="console")
    first, second, third = text.splitlines()
    assert first.split()[0] == "1.23"
    assert "child.ready" in first and "url=http://127.0.0.1:1" in first and "pid=7" in first
    assert second == "        │ hello from the child"
    assert third == "said"
    assert "\x1b" not in text


def test_console_numbers_are_short() -> None:
    """Four digits that count, and every whole digit; a field with nothing in it is left out."""
    step = made(StepFailed, point="warmup", step="text", took_s=12.3456, reason="")
    assert written(step, log_format="console").split()[-3:] == ["point=warmup", "step=text", "took_s=12.35"]
    assert "bytes_per_s=123456789 eta_s=0.0123" in written(
        made(LoadProgress, bytes=1, total_bytes=2, bytes_per_s=123456789.4, eta_s=0.0123), log_format="console"
    )
    assert "took_s=0 " in written(made(StepFailed, point="p", step="s", took_s=0.0, reason="x"), log_format="console")


def test_a_console_gets_no_foreign_escapes() -> None:
    """What a server or a Step says in an event or a message cannot steer the terminal; line breaks stay."""
    bad = "a\x1b]0;title\x07b\x1b[2J\x1b[31mred\x9b\x07\x08\r\nnext"
    step = made(StepFailed, point="warmup", step=bad, took_s=0.1, reason=bad)
    text = written(step, log(bad), bad, log_format="console")
    assert all(character == "\n" or character.isprintable() for character in text)
    assert "title" not in text and "[2J" not in text
    assert text.endswith("abred\nnext\n")
    assert "\x1b]" not in written(step, bad, log_format="console", stream=Terminal())


def test_a_terminal_gets_colours() -> None:
    """Colours are for eyes only."""
    assert "\x1b[" in written(READY, log_format="console", stream=Terminal())


def progress(done: int, total: int | None = 1000, eta_s: float | None = 5.0) -> Event:
    return made(
        LoadProgress, bytes=done * 1_000_000, total_bytes=total and total * 1_000_000, bytes_per_s=1e8, eta_s=eta_s
    )


def test_progress_is_one_live_line_on_a_terminal() -> None:
    """Each report replaces the last, and the next real line replaces the report."""
    text = written(progress(250), progress(500, eta_s=None), log("next"), log_format="console", stream=Terminal())
    clear = "\r\x1b[2K"
    nothing, first, second, rest = text.split(clear)
    assert nothing == ""
    assert first.startswith("loading ███████") and first.endswith(" 25% of 1,000 MB at 100 MB/s, 5 s left")
    assert second.endswith(" 50% of 1,000 MB at 100 MB/s")
    assert rest == "        │ next\n"
    assert "\n" not in first + second


def test_progress_is_a_plain_line_elsewhere() -> None:
    """A log file gets no carriage returns."""
    text = written(progress(250), log_format="console")
    assert "load.progress" in text and "\r" not in text and text.count("\n") == 1


# --------------------------------------------------------------------------------------- slow streams


def test_a_blocked_stream_costs_counted_lines_and_no_time() -> None:
    """While nobody reads, the caller goes on; once somebody does, early lines, events and the count are there."""
    lines, size = 5000, 400
    with pipe() as (reading, stream):
        sink = Sink(stream, "json", capacity=1000)
        for i in range(lines):  # this loop would never end if the sink waited for the stream
            sink(log(f"{i:0{size}}"))
        sink(READY)
        assert not sink.flush(0.001)
        entries = read_all(reading, stream, sink)
    kept = [int(entry["line"]) for entry in entries if entry["event"] == "child.log"]
    dropped = [entry for entry in entries if entry["event"] == "log.dropped"]
    lost = sum(entry["lines"] for entry in dropped)
    assert kept == sorted(set(kept))
    assert lost == lines - len(kept) > 0
    assert sum(entry["bytes"] for entry in dropped) == lost * size
    assert [entry for entry in entries if entry["event"] == "child.ready"], "events have places that lines cannot take"


def test_counts_that_find_no_place_are_added_up() -> None:
    """A full queue does not lose the pump's own count of lost output."""
    with pipe() as (reading, stream):
        sink = Sink(stream, "json", capacity=100)
        sink(made(Notice, detail="x" * 200_000))  # more than the pipe holds
        for _ in range(500):
            sink(made(LogDropped, lines=2, bytes=30))
        entries = read_all(reading, stream, sink)
    dropped = [entry for entry in entries if entry["event"] == "log.dropped"]
    assert len(dropped) < 500
    assert sum(entry["lines"] for entry in dropped) == 1000
    assert sum(entry["bytes"] for entry in dropped) == 15_000


def test_a_small_queue_still_has_room_for_lines() -> None:
    """Whatever the capacity, an idle sink drops nothing."""
    stream = io.StringIO()
    with Sink(stream, "json", capacity=10) as sink:
        for i in range(50):
            sink(log(str(i)))
            assert sink.flush()
    assert [json.loads(line)["line"] for line in stream.getvalue().splitlines()] == [str(i) for i in range(50)]


def test_a_non_blocking_stream_is_waited_for() -> None:
    """Who shares the terminal may have made it non-blocking; nothing is lost by that."""
    with pipe() as (reading, stream):
        os.set_blocking(stream.fileno(), False)
        sink = Sink(stream, "json")
        for i in range(3000):
            sink(log(f"{i:0100}"))
        entries = read_all(reading, stream, sink)
    assert [int(entry["line"]) for entry in entries] == list(range(3000))


# -------------------------------------------------------------------------------------- failing streams


def test_a_full_disk_costs_counted_lines_and_not_the_log(tmp_path: Path) -> None:
    """A write that fails for a while counts as lost; the next go on, on lines of their own, and say how many."""
    path = tmp_path / "log"
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with path.open("w", encoding="utf-8") as stream, Sink(stream, "json") as sink:
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the file may not grow any more: EFBIG
            for i in range(40):
                sink(log(f"{i:04}"))
            assert sink.flush()
            sink(log("9999"))
            assert sink.flush()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        sink(READY)
    kept, dropped, torn = 0, [], 0
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            torn += 1
            continue
        kept += entry["event"] == "child.log"
        dropped += [(entry["lines"], entry["bytes"])] if entry["event"] == "log.dropped" else []
    assert entry["event"] == "child.ready"
    assert 0 < kept < 10 and torn in (1, 2)  # the line that was cut, and the break that ends it
    ((lines, size),) = dropped
    assert 41 - kept <= lines <= 41 and size == 4 * lines  # a batch that failed counts whole


class Fails(io.StringIO):
    """A stream whose first writes fail."""

    failures: ClassVar[list[Exception]] = []

    def write(self, text: str) -> int:
        if self.failures:
            raise self.failures.pop()
        return super().write(text)


def test_an_error_that_may_pass_is_not_the_end_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a reader that has gone and a closed stream are final."""
    for error, final in (
        (OSError(errno.ENOSPC, ""), False),
        (OSError(errno.EIO, ""), False),
        (ValueError("not of the stream"), False),
        (OSError(errno.EPIPE, ""), True),
        (OSError(errno.EBADF, ""), True),
    ):
        monkeypatch.setattr(Fails, "failures", [error])
        stream = Fails()
        with Sink(stream, "console") as sink:
            sink.say("lost")
            assert sink.flush()
            sink.say("kept")
        assert stream.getvalue() == ("" if final else "kept\n")


# --------------------------------------------------------------------------------------- gone streams


def test_a_closed_stream_does_not_raise() -> None:
    """Neither events nor words nor the end make trouble when the stream is closed, and none of them waits."""
    stream = io.StringIO()
    sink = Sink(stream, "json")
    stream.close()
    for _ in range(3):
        sink(READY)
        sink.say("words")
        assert sink.flush()
    sink.close()
    assert not sink._queue


def test_a_reader_that_has_left_does_not_raise() -> None:
    """`supervise ... | head` ends the log, not the server."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w", encoding="utf-8") as stream, Sink(stream, "console") as sink:
        os.close(reading)
        for _ in range(3):
            sink(READY)
            assert sink.flush()
        sink.say("nobody hears this")
        assert sink.flush()


def test_text_that_the_stream_cannot_encode_is_escaped() -> None:
    """An ASCII terminal, or half a surrogate pair, costs a few characters and not the log."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    with Sink(stream, "console") as sink:
        sink(log("caf\xe9 \ud800"))
        sink.say("and on")
    assert raw.getvalue() == b"        \\u2502 caf\\xe9 \\ud800\nand on\n"


def test_close_writes_what_waits_and_ends_the_thread() -> None:
    """Leaving the sink is enough to have everything written; closing twice is once; the stream stays open."""
    stream = io.StringIO()
    before = set(threading.enumerate())
    sink = Sink(stream, "console")
    sink.say("last words")
    sink.close()
    sink.close()
    assert stream.getvalue() == "last words\n"
    assert not set(threading.enumerate()) - before
    assert not stream.closed


def test_the_sink_leaves_no_descriptor_open() -> None:
    """What it opens for itself, it closes, and not the caller's."""
    with pipe() as (_, stream):
        before = len(os.listdir("/dev/fd"))
        Sink(stream, "json").close()
        assert len(os.listdir("/dev/fd")) == before
        os.fstat(stream.fileno())


def test_a_sink_without_a_thread_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the system gives no thread, the error says what was lacking, and no descriptor stays open."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with pipe() as (_, stream):
        before = len(os.listdir("/dev/fd"))
        with monkeypatch.context() as patch, pytest.raises(OutOfResources, match=r"can't start new thread.*ulimit -u"):
            patch.setattr(threading.Thread, "start", refuse)
            Sink(stream, "json")
        assert len(os.listdir("/dev/fd")) == before


def test_order_is_kept_between_events_and_words() -> None:
    """What is said between two events is read between them."""
    entries = written(log("1"), "2", log("3"), "4", log_format="console").splitlines()
    assert [entry.split()[-1] for entry in entries] == ["1", "2", "3", "4"]
