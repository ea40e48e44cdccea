"""What every program here prints and times with; needs no package."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable


def say(text: str) -> None:
    """One line, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def timed(what: Callable[[], object]) -> float:
    """How long it took, seconds."""
    began = time.monotonic()
    what()
    return round(time.monotonic() - began, 3)
