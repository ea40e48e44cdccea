"""Memory in use, and how it grows."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path

_HEAP_FIELDS = (
    "arena",
    "ordblks",
    "smblks",
    "hblks",
    "hblkhd",
    "usmblks",
    "fsmblks",
    "uordblks",
    "fordblks",
    "keepcost",
)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the straight line through the points, by least squares; 0 when they do not spread."""
    n = len(points)
    mean_x, mean_y = (sum(point[i] for point in points) / max(n, 1) for i in (0, 1))
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def rss_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class _Heap(ctypes.Structure):
    """The C library's struct mallinfo2."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in _HEAP_FIELDS)


def bytes_in_use() -> int:
    """What is allocated: by the C library's count, and of Python's own small blocks, of 64 bytes on average.

    Not the resident memory, where a C library has the count: that also grows with what the heaps of many short-lived
    threads keep for reuse, by tens of kilobytes a life at first.
    """
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return rss_bytes()
    mallinfo2.restype = _Heap
    heap = mallinfo2()
    return int(heap.uordblks + heap.hblkhd) + 64 * sys.getallocatedblocks()
