"""A process whose log nobody reads still ends."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from support import ROOT

BLOCKED = """
import sys
from supervisor.events import ChildLog
from supervisor.logs.sink import Sink
with Sink(sys.stderr) as sink:
    for _ in range(5000):
        sink(ChildLog(elapsed_s=0.0, unix_s=0.0, stream="stdout", line="x" * 200, line_level="info"))
sys.exit(3)
"""


@pytest.mark.parametrize("flags", [["-E"], ["-E", "-u"]], ids=["buffered", "unbuffered"])
def test_a_stderr_that_nobody_reads_does_not_hang_the_exit(flags: list[str]) -> None:
    """The interpreter flushes stderr when it exits, and must not find a lock there that is never released."""
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen([sys.executable, *flags, "-c", BLOCKED], stderr=writing, cwd=ROOT)
        try:
            assert process.wait(20) == 3
        finally:
            process.kill()
            process.wait()
    finally:
        os.close(reading)
        os.close(writing)
