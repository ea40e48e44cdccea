"""Output that was read and not yet processed."""

from __future__ import annotations

from collections import deque

import anyio

__all__ = ["Backlog"]


class Backlog:
    """Chunks read and not yet processed: bounded, oldest dropped first, iterated by one task."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._gap = False
        self._ended = False
        self._more = anyio.Event()

    def put(self, data: bytes) -> tuple[int, int]:
        """Adds a chunk; returns the (lines, bytes) that had to go."""
        self._chunks.append(data)
        self._size += len(data)
        lines = lost = 0
        while self._size > self._limit:
            oldest = self._chunks.popleft()
            self._size -= len(oldest)
            lines += oldest.count(b"\n")
            lost += len(oldest)
            self._gap = True
        self._more.set()
        return lines, lost

    def end(self) -> None:
        """Says that no chunk will follow."""
        self._ended = True
        self._more.set()

    def take_gap(self) -> bool:
        """Whether chunks were dropped before the one that was just taken."""
        gap, self._gap = self._gap, False
        return gap

    def __aiter__(self) -> Backlog:
        return self

    async def __anext__(self) -> bytes:
        while not self._chunks:
            if self._ended:
                raise StopAsyncIteration
            self._more = anyio.Event()
            await self._more.wait()
        data = self._chunks.popleft()
        self._size -= len(data)
        return data
