"""The image server's worker: whatever a pipeline raises, somebody hears of it."""

from __future__ import annotations

import subprocess
import sys

import pytest

# In a process of its own, because the worker's thread lasts as long as its process.
TWO_TURNS = """
import asyncio
from supervisor.engines.images.server.worker import Worker

class Panic(BaseException):
    'Like the panics of libraries in Rust, which are no Exceptions.'

def fail():
    raise {raised}

async def turns():
    worker = Worker()
    try:
        await asyncio.wait_for(worker.submit(fail), 10)
    except RuntimeError as error:
        print(error)
    print(await asyncio.wait_for(worker.submit(lambda: 7), 10))

asyncio.run(turns())
"""


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        ("StopIteration(3)", "StopIteration: 3"),
        ("Panic('in a thread')", "Panic: in a thread"),
        ("SystemExit(0)", "SystemExit: 0"),
    ],
)
def test_what_no_future_takes_is_an_error_all_the_same(raised: str, words: str) -> None:
    """A future refuses a StopIteration, others would end the thread: the caller gets an error, and the next turn."""
    script = TWO_TURNS.replace("{raised}", raised)
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=40)
    assert found.stdout.splitlines() == [words, "7"]
