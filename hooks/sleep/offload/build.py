"""Building the library from the packaged sources, and finding one that was built."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["LIBRARY", "build", "find"]

LIBRARY = "libwarmboot_gpu.so"


def build(folder: Path | None = None, *, cc: str | None = None) -> Path:
    """Compile the library into `folder` (None: the cache) and return its path. Blocks, for a second or two.

    Args:
        folder: where it goes, as `libwarmboot_gpu.so`; made if it is missing.
        cc: the compiler; None: $CC, else `cc`.

    Raises:
        NoCompiler: there is none.
        CompileFailed: it refused.
        OSError: the folder cannot be written to.
    """
    raise NotImplementedError(folder, cc)


def find() -> Path | None:
    """Return the library in the cache, if it was built from the sources of this version; None: build it."""
    return None
