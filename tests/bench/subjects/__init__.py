"""Processes under measurement: each reads jobs as JSON lines and prints results."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any


def answer_jobs(work: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Until stdin ends: one job, one result."""
    out = sys.stdout
    for line in sys.stdin:
        out.write(json.dumps(work(json.loads(line))) + "\n")
        out.flush()
