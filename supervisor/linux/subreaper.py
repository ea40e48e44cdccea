"""Adoption of orphans: a descendant whose parent has ended becomes our child, once we have asked for that."""

from __future__ import annotations

from typing import Final

_PR_SET_CHILD_SUBREAPER: Final = 36  # include/uapi/linux/prctl.h
_adopting = False


def adopt_orphans() -> bool:
    """Asks the kernel for all orphans among our descendants (PR_SET_CHILD_SUBREAPER); returns whether we get them.

    For a program of our own only: whoever adopts has to reap (`supervisor.process.orphans`). Costs 5 ms, once.
    """
    global _adopting  # noqa: PLW0603  it is a setting of the process
    import ctypes  # deferred: hosts that do not adopt do not pay for it

    try:
        _adopting = _adopting or ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    except (OSError, AttributeError):  # no Linux
        return False
    return _adopting


def adopts_orphans() -> bool:
    """Whether orphans come to us because we asked for them."""
    return _adopting
