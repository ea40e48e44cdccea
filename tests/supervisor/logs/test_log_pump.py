"""The pump on real pipes: what comes out is clean, bounded and counted, and the writer never waits for the reader."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.to_thread
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.events import Level
from supervisor.logs.pump import LogPump, Stream
from supervisor.profile import LogLimits
from supervisor.redact import MASK, Redactor, Secret

KEY = "sk-0123456789abcdef"
MIB = 1 << 20


@dataclass
class Pumped:
    """A pump on two pipes, its writing ends, and what it said."""

    pump: LogPump
    stdout: int
    stderr: int
    lines: list[tuple[Stream, Level, str]] = field(default_factory=list)
    dropped: list[tuple[int, int]] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        return [text for _, _, text in self.lines]

    def close(self) -> None:
        os.close(self.stdout)
        os.close(self.stderr)

    async def run(self) -> None:
        """Pumps what has been written until now, to its end."""
        self.close()
        await self.pump.run()
        assert self.pump.drained.is_set()


@contextmanager
def pumped(
    limits: LogLimits | None = None, *secrets: str, on_line: Callable[[str], None] = lambda _: None
) -> Iterator[Pumped]:
    (out, stdout), (err, stderr) = os.pipe(), os.pipe()
    for fd in (out, err):
        os.set_blocking(fd, False)

    def keep(stream: Stream, level: Level, text: str) -> None:
        pipes.lines.append((stream, level, text))
        on_line(text)

    pump = LogPump(
        {"stdout": out, "stderr": err},
        limits or LogLimits(),
        Redactor(map(Secret, secrets)),
        on_line=keep,
        on_dropped=lambda lines, lost: pipes.dropped.append((lines, lost)),
    )
    pipes = Pumped(pump, stdout, stderr)
    try:
        yield pipes
    finally:
        os.close(out)
        os.close(err)


@pytest.mark.anyio
async def test_lines_of_both_streams_come_with_their_stream() -> None:
    """Order within a stream is kept, and the stream is named."""
    with pumped() as pipes:
        os.write(pipes.stdout, b"one\ntwo\n")
        os.write(pipes.stderr, b"three\n")
        await pipes.run()
    assert [(stream, text) for stream, _, text in pipes.lines if stream == "stdout"] == [
        ("stdout", "one"),
        ("stdout", "two"),
    ]
    assert ("stderr", "info", "three") in pipes.lines
    assert (pipes.pump.bytes_seen, pipes.dropped) == (14, [])


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (b"\x1b[1;31mred\x1b[0m plain\n", ["red plain"]),
        (b"\x1b]0;title\x07text\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\\n", ["textlink"]),
        (b"a\x1b(Bb\x1b7c\x1bMd\n", ["a(Bb7cd"]),
        (b"caf\xc3\xa9 \xff\xfe end\n", ["café \ufffd\ufffd end"]),
        (b"bell\x07 back\x08 nul\x00 del\x7f c1\xc2\x9b\n", ["bell back nul del c1"]),
        (b"a\tb\n", ["a b"]),
        (b"windows\r\nlines\r\n", ["windows", "lines"]),
        (b"10%\r50%\r100%\n", ["100%"]),
        (b"10%\r50%\r", ["50%"]),
        (b"\n\n  \n\x1b[0m\nx\n", ["x"]),
        (b"no break at the end", ["no break at the end"]),
        (b"cut escape \x1b[3", ["cut escape"]),
        (b"cut character \xe6\xbc", ["cut character"]),
        (b"trailing   \n", ["trailing"]),
    ],
    ids=lambda value: repr(value)[:30],
)
async def test_lines_are_clean_text(written: bytes, shown: list[str]) -> None:
    """No escape, no control character, no broken character reaches a log, whatever the child writes."""
    with pumped() as pipes:
        os.write(pipes.stdout, written)
        await pipes.run()
    assert pipes.texts == shown
    assert all(text.isprintable() for text in pipes.texts)
    assert pipes.pump.tail() == tuple(shown)


@pytest.mark.anyio
async def test_json_lines_give_their_level_and_message() -> None:
    """The default parser reads structured logs."""
    with pumped() as pipes:
        os.write(pipes.stdout, b'{"level":"warn","msg":"low"}\n{"level":"error","msg":"bad"}\nplain\n')
        await pipes.run()
    assert [line[1:] for line in pipes.lines] == [("warning", "low"), ("error", "bad"), ("info", "plain")]
    assert pipes.pump.tail() == ("low", "bad", "plain")


@pytest.mark.anyio
@pytest.mark.parametrize("result", [("info", None), ("info", b"x"), ("loud", "x"), ("info",), "info", None])
async def test_a_parser_that_returns_no_line_costs_nothing(result: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What is no level and text is reported once; the lines are kept as they are, and the pump goes on."""
    with pumped(LogLimits(parse=lambda _: result)) as pipes:
        os.write(pipes.stdout, b"one\ntwo\n")
        await pipes.run()
    assert pipes.lines == [("stdout", "info", "one"), ("stdout", "info", "two")]
    assert len(caplog.records) == 1


@pytest.mark.anyio
async def test_what_json_unescapes_is_cleaned_again() -> None:
    """A secret, an escape, a line break or half a surrogate pair that hides behind JSON's escapes does not get out."""
    escaped = "".join(f"\\u{ord(c):04x}" for c in KEY)
    with pumped(None, KEY) as pipes:
        for message in (f"key {escaped}", "\\u001b[31mred", "two\\nlines", "half \\ud800", "\\u0000nul"):
            os.write(pipes.stdout, f'{{"msg":"{message}"}}\n'.encode())
        await pipes.run()
    assert pipes.texts == [f"key {MASK}", "red", "two lines", "half ?", "nul"]


@pytest.mark.anyio
async def test_the_tail_ends_with_the_unfinished_line() -> None:
    """While the child still writes a line, the tail shows what there is of it, and the secret in it not even begun."""
    with pumped(LogLimits(tail_lines=3), KEY) as pipes:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pipes.pump.run)
            os.write(pipes.stdout, b"1\n2\n3\nunfinished " + KEY[:10].encode())
            while not pipes.pump.tail() or not pipes.pump.tail()[-1].startswith("unf"):
                await anyio.lowlevel.checkpoint()
            assert pipes.pump.tail() == ("2", "3", "unfinished")
            pipes.close()
    assert pipes.pump.tail() == ("2", "3", "unfinished")


@pytest.mark.anyio
async def test_a_secret_in_two_writes_is_masked() -> None:
    """What the child flushes half-way is still one line, and masked as one."""
    with pumped(None, KEY) as pipes:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pipes.pump.run)
            os.write(pipes.stderr, b"Bearer " + KEY[:7].encode())
            while pipes.pump.bytes_seen < 14:  # the first half is read on its own
                await anyio.lowlevel.checkpoint()
            os.write(pipes.stderr, KEY[7:].encode() + b" ok\n")
            pipes.close()
    assert pipes.texts == [f"Bearer {MASK} ok"]


@pytest.mark.anyio
async def test_a_secret_at_the_cut_of_a_long_line_is_masked() -> None:
    """A line is cut at its limit, and a secret across the limit is neither shown in part nor missed."""
    for before in range(60, 82):
        with pumped(LogLimits(max_line_bytes=80), KEY) as pipes:
            os.write(pipes.stdout, b"x" * before + KEY.encode() + b"y" * 200 + b"\nnext\n")
            await pipes.run()
        first, second = pipes.texts
        assert first[before:].startswith(MASK[: max(0, 80 - before)])
        assert first.rstrip("*y") == "x" * min(before, 80)
        assert len(first) <= 80 and second == "next"


# The child's side of the tests below: a process of its own, so that the pipe is filled while the pump runs.
LINES = "import sys\nfor i in range({n}): sys.stdout.write('%08d ' % i + 'x' * 40 + '\\n')"
ENDLESS = "import os\nfor _ in range({n}): os.write(1, b'x' * (1 << 20))"


async def drain_process(pipes: Pumped, program: str) -> None:
    argv = [sys.executable, "-I", "-S", "-c", program]
    process = await anyio.to_thread.run_sync(lambda: subprocess.Popen(argv, stdout=pipes.stdout, stderr=pipes.stderr))
    try:
        await pipes.run()
    finally:
        status = await anyio.to_thread.run_sync(process.wait)
    assert status == 0


@pytest.mark.anyio
async def test_a_busy_consumer_costs_counted_lines() -> None:
    """What a slow consumer does not take is dropped, oldest first, and kept and dropped add up to what was written."""
    lines, line_bytes = 40_000, 50

    def busy(_: str) -> None:
        until = time.monotonic() + 0.0005
        while time.monotonic() < until:
            pass

    with pumped(LogLimits(backlog_bytes=1 << 16), on_line=busy) as pipes:
        await drain_process(pipes, LINES.format(n=lines))
    kept = [int(text.split()[0]) for text in pipes.texts]
    assert kept == sorted(set(kept)), "lines are kept whole, once, in order"
    assert all(len(text) == line_bytes - 1 for text in pipes.texts)
    assert kept[-1] == lines - 1, "the newest output is what is kept"
    dropped_lines, dropped_bytes = (sum(column) for column in zip(*pipes.dropped, strict=True))
    assert dropped_lines > 0
    assert dropped_lines + len(kept) == lines
    assert dropped_bytes + len(kept) * line_bytes == pipes.pump.bytes_seen == lines * line_bytes


@pytest.mark.anyio
async def test_a_hundred_megabytes_without_a_line_break_take_no_memory() -> None:
    """Memory is bounded by the limits, not by what the child writes; what is not kept is counted to the byte."""
    limits = LogLimits(max_line_bytes=8192, backlog_bytes=MIB)
    tracemalloc.start()
    try:
        with pumped(limits) as pipes:
            await drain_process(pipes, ENDLESS.format(n=100))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert pipes.pump.bytes_seen == 100 * MIB
    assert pipes.texts == ["x" * 8192]
    assert sum(lost for _, lost in pipes.dropped) == 100 * MIB - 8192
    assert peak < 4 * MIB


@pytest.mark.anyio
async def test_cancelling_the_pump_ends_it_at_once() -> None:
    """A pipe that somebody holds open for ever does not hold the pump, and `drained` stays unset."""
    with pumped() as pipes:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pipes.pump.run)
            os.write(pipes.stdout, b"last words\n")
            while not pipes.texts:
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        pipes.close()
    assert pipes.pump.tail() == ("last words",)
    assert not pipes.pump.drained.is_set()


@given(st.binary(max_size=400))
def test_any_bytes_become_printable_text(data: bytes) -> None:
    """Cleaning never raises, and leaves nothing that a terminal would obey."""
    with pumped(None, KEY) as pipes:
        pipes.close()
        for cut in (False, True):
            text = pipes.pump._cleaner.decode(data.replace(b"\n", b""), cut=cut)
            assert not any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 for c in text)


def test_the_first_loss_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that was booted a moment ago reports it as soon as any other."""
    monkeypatch.setattr(sys.modules[LogPump.__module__], "time", SimpleNamespace(monotonic=lambda: 0.01))
    with pumped() as pipes:
        pipes.pump._dropped = [1, 80]
        pipes.pump._report()
        pipes.close()
        assert pipes.dropped == [(1, 80)]
