"""Bytes to lines under any chunking, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator


class LineSplitter:
    """Cuts a stream into lines.

    A line longer than `limit` bytes is cut there; its rest is skipped and counted in `lost_bytes`. `lost_lines` counts
    the lines that a gap left without a beginning; their bytes, line break included, are in `lost_bytes` too.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._line = bytearray()
        self._skipping = False  # up to the next line break
        self._headless = False  # what is skipped was not yielded, not even in part
        self.lost_bytes = 0
        self.lost_lines = 0

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bool]]:
        """Yields (line without its break, whether it was cut). Consume it wholly before the next call."""
        begin = 0
        while begin < len(data):
            end = data.find(b"\n", begin)
            stop = len(data) if end < 0 else end
            if self._skipping:
                self.lost_bytes += stop - begin
            else:
                room = self._limit - len(self._line)
                self._line += data[begin : min(stop, begin + room)]
                if stop - begin > room:
                    self.lost_bytes += stop - begin - room
                    yield self._take(), True
                    self._skipping = True
            if end >= 0:
                if not self._skipping:
                    yield self._take(), False
                elif self._headless:
                    self.lost_lines += 1
                    self.lost_bytes += 1
                self._skipping = self._headless = False
            begin = stop + 1

    def partial(self) -> bytes:
        """What has come of a line that is not finished."""
        return bytes(self._line)

    def gap(self) -> None:
        """Input is missing here: the unfinished line and the rest of the next one cannot be trusted."""
        self.lost_bytes += len(self._line)
        self._line.clear()
        # A line that was cut before has been yielded: its end is not another line.
        self._headless = self._headless or not self._skipping
        self._skipping = True

    def _take(self) -> bytes:
        line = bytes(self._line)
        self._line.clear()
        return line
