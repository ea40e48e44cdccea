"""Stands in for uvloop with asyncio's own event loop, which sets up no io_uring.

vLLM runs its API server by `uvloop.run` and has no option for another loop (0.32.0, entrypoints/cli/serve.py). libuv,
on which uvloop is built, sets up an io_uring on bare Linux, and no snapshot of processes holds one. Run by vLLM's
interpreter, with this file's folder on `PYTHONPATH`, which comes before the packages of its environment.
"""

import asyncio
from asyncio import BaseEventLoop as Loop
from asyncio import new_event_loop, run

__all__ = ["Loop", "install", "new_event_loop", "run"]


def install() -> None:
    """Leave asyncio's policy as it is."""
    asyncio.get_event_loop_policy()
