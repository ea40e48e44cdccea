"""Events to a stream, through structlog: console lines or JSON, one object a line.

Rendering and writing happen on a thread behind a bounded queue, because a terminal or a pipe may block, and an observer
must not. What a slow stream cannot take is dropped, the child's oldest lines first, and the count is reported.
"""

from __future__ import annotations

import errno
import os
import select
import threading
from collections import deque
from dataclasses import fields
from datetime import UTC, datetime
from io import BufferedWriter, FileIO, TextIOWrapper
from types import TracebackType
from typing import Any, Final, Literal, Self, TextIO

from supervisor.events import ChildLog, Event, LoadProgress, LogDropped
from supervisor.linux.exhaustion import detect
from supervisor.logs.clean import clean
from supervisor.logs.render import console_renderer, json_renderer, progress_line

__all__ = ["LogFormat", "Sink", "to_dict"]

LogFormat = Literal["console", "json"]

_BASE: Final = frozenset({"elapsed_s", "unix_s", "line_level"})
_CLEAR_LINE: Final = "\r\x1b[2K"
_FINAL: Final = frozenset({errno.EPIPE, errno.EBADF})  # whoever has gone does not come back; a full disk may


def to_dict(event: Event) -> dict[str, Any]:
    """An event as `event`, `level`, `timestamp` (ISO 8601, UTC), `elapsed_s`, and its own fields."""
    level = event.line_level if isinstance(event, ChildLog) else event.level
    stamp = datetime.fromtimestamp(event.unix_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    own = {f.name: getattr(event, f.name) for f in fields(event) if f.name not in _BASE}
    return {
        "event": event.name,
        "level": level,
        "timestamp": stamp,
        "elapsed_s": round(event.elapsed_s, 4),
        **{name: round(value, 4) if isinstance(value, float) else value for name, value in own.items()},
    }


class Sink:
    """An observer that writes events to a stream from a thread of its own. A context manager: leaving it flushes.

    Args:
        stream: where to; only the sink's thread writes there.
        log_format: `console` for people (colours and a live progress line on a terminal), `json` for machines.
        capacity: events that may wait; beyond it, the child's oldest lines are dropped and counted.

    Raises:
        OutOfResources: there is no thread to be had.
    """

    def __init__(self, stream: TextIO, log_format: LogFormat = "console", *, capacity: int = 10_000) -> None:
        self._stream = stream
        self._fd = _descriptor(stream)
        self._live = log_format == "console" and stream.isatty()
        self._render = json_renderer() if log_format == "json" else console_renderer(colors=self._live)
        self._capacity = capacity
        self._queue: deque[Event | str] = deque()
        self._changed = threading.Condition()
        self._dropped = [0, 0]  # lines, bytes
        self._newest: Event | None = None
        self._failed = False  # the last write, so that the last line may lack its end
        self._writing = False
        self._closed = False
        self._gone = False
        self._line_is_live = False
        self._thread = threading.Thread(target=self._work, name="warmboot-sink", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            if self._fd is not None:
                os.close(self._fd)
            if exhausted := detect(error):
                raise exhausted from error
            raise

    def __call__(self, event: Event) -> None:
        """Queues the event; never blocks for longer than a lock of microseconds."""
        with self._changed:
            if self._gone:
                return
            if len(self._queue) >= self._capacity and not self._make_room():
                if isinstance(event, LogDropped):
                    self._lose(event)
                return
            self._queue.append(event)
            self._changed.notify_all()

    def _make_room(self) -> bool:
        """Drops the child's oldest line, because the last ones before an end are those that tell."""
        for index, item in enumerate(self._queue):  # what is not a line is rare: this ends after a few
            if isinstance(item, ChildLog):
                del self._queue[index]
                self._lose(item)
                return True
        return False

    def _lose(self, item: Event | str) -> None:
        lines, lost = 1, len(item.line.encode(errors="replace")) if isinstance(item, ChildLog) else 0
        if isinstance(item, LogDropped):  # what it counts is still not kept
            lines, lost = item.lines, item.bytes
        self._dropped = [self._dropped[0] + lines, self._dropped[1] + lost]

    def say(self, text: str) -> None:
        """Queues plain text, for a person."""
        with self._changed:
            if not self._gone:
                self._queue.append(text)
                self._changed.notify_all()

    def flush(self, timeout_s: float = 2.0) -> bool:
        """Waits until everything queued is written, for so long at most; returns whether it is."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue and not self._writing, timeout_s)

    def close(self) -> None:
        """Flushes for at most 2 s, then gives up: a stream that nobody reads must not hang the exit. Idempotent."""
        self.flush()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(0.5)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _work(self) -> None:
        try:
            self._write_all()
        except (OSError, ValueError):
            # The reader has left (a closed terminal, `| head`): the server matters more than its log.
            with self._changed:
                self._gone = True
                self._queue.clear()
                self._writing = False
                self._changed.notify_all()
        finally:
            if self._fd is not None:
                os.close(self._fd)

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return
                batch = list(self._queue)
                self._queue.clear()
                self._writing = True
                self._newest = next((item for item in reversed(batch) if isinstance(item, Event)), self._newest)
                if any(self._dropped) and (now := self._newest) is not None:
                    lines, lost = self._dropped
                    batch.insert(0, LogDropped(elapsed_s=now.elapsed_s, unix_s=now.unix_s, lines=lines, bytes=lost))
                    self._dropped = [0, 0]
            self._write_batch(batch)

    def _write_batch(self, batch: list[Event | str]) -> None:
        """Writes a batch whole, or counts it as lost, though its first lines may have been written."""
        encoding = self._stream.encoding or "utf-8"
        try:
            data = b"".join(self._text(item).encode(encoding, "backslashreplace") for item in batch)
            self._write(data, encoding)
            self._failed = False
        except Exception as error:
            if self._stream.closed or (isinstance(error, OSError) and error.errno in _FINAL):
                raise
            self._failed = True
            with self._changed:
                for item in batch:
                    self._lose(item)

    def _write(self, data: bytes, encoding: str) -> None:
        self._stream.flush()  # raises ValueError when the stream has been closed
        if self._fd is None:
            self._stream.write(data.decode(encoding))
            self._stream.flush()
            return
        rest = memoryview(b"\n" + data if self._failed else data)
        while rest:
            try:
                rest = rest[os.write(self._fd, rest) :]
            except BlockingIOError:  # whoever shares the terminal or pipe made it non-blocking
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll()

    def _text(self, item: Event | str) -> str:
        if self._live and isinstance(item, LoadProgress):
            self._line_is_live = True
            return _CLEAR_LINE + progress_line(item)
        clear = _CLEAR_LINE if self._line_is_live else ""
        self._line_is_live = False
        return clear + (clean(item) if isinstance(item, str) else self._render(to_dict(item))) + "\n"


def _descriptor(stream: TextIO) -> int | None:
    """A descriptor of a plain text file, pipe or terminal; None: the stream is something else.

    A thread that blocks in the stream's own `write` holds its lock, and the interpreter's exit, which flushes stderr,
    would wait for that lock for ever.
    """
    buffer = stream.buffer if isinstance(stream, TextIOWrapper) else None
    raw = buffer.raw if isinstance(buffer, BufferedWriter) else buffer  # PYTHONUNBUFFERED leaves the buffer out
    return os.dup(stream.fileno()) if isinstance(raw, FileIO) else None
