"""The log pump: bytes -> bounded lines -> redaction -> level -> a callback and a tail.

Nothing here waits on anyone but the child. Reading has priority over processing: what is read and cannot be processed
in time waits in a bounded backlog, and beyond that the oldest output is dropped and counted. So a child never blocks on
a full pipe for longer than one turn of the event loop, whatever it writes and however slow the consumer is.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from typing import Final, Literal, get_args

import anyio
import anyio.lowlevel

from supervisor.events import Level
from supervisor.logs.backlog import Backlog
from supervisor.logs.clean import LineCleaner
from supervisor.logs.lines import LineSplitter
from supervisor.logs.tail import Tail
from supervisor.profile import LogLimits
from supervisor.redact import Redactor

Stream = Literal["stdout", "stderr"]

# Each read gives the interpreter's lock away, and another thread may keep it for 5 ms: not too small. From 128 KiB on,
# memory is mapped for each read.
_CHUNK_BYTES: Final = 120 << 10
_BURST_S: Final = 0.004  # a pipe that stays full is read for so long before anything else has a turn
_SLICE_S: Final = 0.0003  # processing yields to reading this often
_REPORT_S: Final = 1.0  # between two reports of drops
_LEVELS: Final = get_args(Level)


class LogPump:
    """Drains one child's stdout and stderr until both end.

    Args:
        fds: non-blocking read ends by stream name; the caller closes them after `run` has ended.
        limits: bounds and the engine's line parser.
        redact: applied before anything is stored or handed on.
        on_line: (stream, level, text); must not block.
        on_dropped: (lines, bytes) not kept since the last call, at most once a second and at the end; must not block.
    """

    def __init__(
        self,
        fds: dict[Stream, int],
        limits: LogLimits,
        redact: Redactor,
        *,
        on_line: Callable[[Stream, Level, str], None],
        on_dropped: Callable[[int, int], None],
    ) -> None:
        self._fds = fds
        self._limits = limits
        self._redact = redact
        self._cleaner = LineCleaner(redact, limits.max_line_bytes)
        self._on_line = on_line
        self._on_dropped = on_dropped
        # A secret that begins before the cut must be whole to be recognised.
        self._splitters = {stream: LineSplitter(limits.max_line_bytes + redact.longest_bytes) for stream in fds}
        self._tail = Tail(limits.tail_lines, limits.tail_errors)
        self._dropped = [0, 0]  # lines, bytes
        self._reported_at = -math.inf
        self._parser_failed = False
        self.bytes_seen = 0
        self.drained = anyio.Event()

    async def run(self) -> None:
        """Pumps until every writer has closed both pipes, then sets `drained`.

        Cancellation stops the draining at once; output that was read and not yet processed is lost.
        """
        async with anyio.create_task_group() as tasks:
            for stream in self._fds:
                tasks.start_soon(self._pump, stream)
        self._report(final=True)
        self.drained.set()

    def tail(self) -> tuple[str, ...]:
        """The last lines, unfinished ones included, and earlier errors before them (see `Tail`); redacted."""
        partials = (splitter.partial() for splitter in self._splitters.values())
        shown = [self._cleaner.decode(partial, cut=True) for partial in partials if partial]
        return self._tail.show(filter(None, shown))

    async def _pump(self, stream: Stream) -> None:
        fd = self._fds[stream]
        limit = self._limits.backlog_bytes
        backlog, chunk_bytes = Backlog(limit), min(_CHUNK_BYTES, limit // 4)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._process, stream, backlog)
            burst_ends = time.monotonic() + _BURST_S
            while True:
                try:
                    data = os.read(fd, chunk_bytes)
                except BlockingIOError:
                    await anyio.wait_readable(fd)
                    burst_ends = time.monotonic() + _BURST_S
                    continue
                if not data:
                    break
                self.bytes_seen += len(data)
                lines, lost = backlog.put(data)
                self._lose(lines, lost)
                if len(data) < chunk_bytes or time.monotonic() >= burst_ends:
                    await anyio.lowlevel.checkpoint()
                    burst_ends = time.monotonic() + _BURST_S
            backlog.end()

    async def _process(self, stream: Stream, backlog: Backlog) -> None:
        splitter = self._splitters[stream]
        slice_ends = time.monotonic() + _SLICE_S
        async for data in backlog:
            if backlog.take_gap():
                splitter.gap()
            for line, cut in splitter.feed(data):
                self._keep(stream, line, cut=cut)
                if time.monotonic() >= slice_ends:
                    await anyio.lowlevel.checkpoint()
                    slice_ends = time.monotonic() + _SLICE_S
            if splitter.lost_bytes:
                self._lose(splitter.lost_lines, splitter.lost_bytes)
                splitter.lost_lines = splitter.lost_bytes = 0
        if rest := splitter.partial():
            self._keep(stream, rest, cut=True)
            splitter.gap()

    def _keep(self, stream: Stream, line: bytes, *, cut: bool) -> None:
        text = self._cleaner.decode(line, cut=cut)
        if text:
            level, shown = self._parse(text)
            if shown is not text:
                # Unescaping (JSON's) may bring to light what was not there before: a secret, a control character.
                shown = self._cleaner.tidy(" ".join(shown.encode("utf-8", "replace").decode().splitlines()), cut=cut)
            self._tail.add(level, shown)
            self._on_line(stream, level, shown)

    def _parse(self, text: str) -> tuple[Level, str]:
        raised: BaseException | None = None
        try:
            level, shown = self._limits.parse(text)
            if isinstance(shown, str) and level in _LEVELS:
                return level, shown
            problem = f"returned {(level, shown)!r}, not a level of {_LEVELS} and a text"
        # The parser is the profile's: its defect must not end the draining, nor the host.
        except (Exception, SystemExit) as error:  # noqa: BLE001
            problem, raised = "raised", error
        if not self._parser_failed:
            self._parser_failed = True
            logging.getLogger("supervisor").error("the profile's log parser %s", self._redact(problem), exc_info=raised)
        return "info", text

    def _lose(self, lines: int, lost_bytes: int) -> None:
        self._dropped[0] += lines
        self._dropped[1] += lost_bytes
        self._report()

    def _report(self, *, final: bool = False) -> None:
        now = time.monotonic()
        if self._dropped[1] and (final or now - self._reported_at >= _REPORT_S):
            self._reported_at = now
            self._on_dropped(*self._dropped)
            self._dropped = [0, 0]
