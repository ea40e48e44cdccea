"""Stands in for uvloop with asyncio's own event loop, which sets up no io_uring.

SGLang sets uvloop's policy in each of its processes and has no option for another loop (0.5.23,
entrypoints/http_server.py). libuv, on which uvloop is built, sets up an io_uring on bare Linux, and no snapshot of
processes holds one. Run by SGLang's interpreter, with this file's folder on `PYTHONPATH`, which comes before the
packages of its environment.
"""

import asyncio
from asyncio import BaseEventLoop as Loop
from asyncio import DefaultEventLoopPolicy as EventLoopPolicy
from asyncio import new_event_loop, run

__all__ = ["EventLoopPolicy", "Loop", "install", "new_event_loop", "run"]


def install() -> None:
    """Leave asyncio's policy as it is."""
    asyncio.get_event_loop_policy()
