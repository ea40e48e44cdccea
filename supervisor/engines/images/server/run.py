"""Starts the server, and stops it: it listens first, then loads; SIGTERM lets the running image finish."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from typing import NoReturn

import uvicorn

from .application import build
from .desk import Desk
from .options import KEY_VARIABLE, Options, parse

__all__ = ["main"]

log = logging.getLogger("images")


class _EachLine(logging.Formatter):
    """Puts the level before each line, those of a traceback too, so that a reader of the log knows them all."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's text."""
        lines = super().format(record).splitlines() or [""]
        return "\n".join(f"{record.levelname} {line}" for line in lines)


def main() -> NoReturn:
    """Serve until SIGTERM or SIGINT, then exits 0; exits 1 when it cannot serve, 2 for a wrong command line."""
    options = parse()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_EachLine("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # it speaks of its own start, which is not ours
    code = 1
    try:
        listener = socket.create_server(
            (options.host, options.port), family=socket.AF_INET6 if ":" in options.host else socket.AF_INET
        )
    except OSError as error:
        log.error("cannot listen on %s:%d: %s", options.host, options.port, os.strerror(error.errno or 0))  # noqa: TRY400
    else:
        code = asyncio.run(_serve(options, listener))
    logging.shutdown()
    sys.stderr.flush()
    # Not sys.exit: a load that still runs cannot be stopped, and the interpreter would go down under its thread.
    os._exit(code)


async def _serve(options: Options, listener: socket.socket) -> int:
    """Serve until the desk ends; returns the exit code."""
    desk = Desk(options)
    loop = asyncio.get_running_loop()
    host = f"[{options.host}]" if ":" in options.host else options.host
    where = f"http://{host}:{listener.getsockname()[1]}"
    tasks: list[asyncio.Task[None]] = []

    def stop() -> None:
        if desk.stage != "stopping":
            tasks.append(loop.create_task(desk.stop(options.grace_s)))

    def begin() -> None:
        # In place of uvicorn's handlers, which wait for whoever stands in the queue.
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop)
        log.info("listening on %s", where)
        if options.key is None:
            log.warning("no key in %s: everybody who reaches the port may use the server", KEY_VARIABLE)
        tasks.append(loop.create_task(desk.load(where)))
        tasks.append(loop.create_task(end()))

    async def end() -> None:
        await desk.ended.wait()
        server.should_exit = True

    config = uvicorn.Config(
        build(options, desk, begin),
        loop="asyncio",  # uvloop keeps an io_uring open, which a snapshot of processes cannot hold
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=3,  # answers that are still being sent
    )
    server = uvicorn.Server(config)
    await server.serve(sockets=[listener])
    return 1 if desk.failed else 0
