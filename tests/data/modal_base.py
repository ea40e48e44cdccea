"""The lifecycle of a tiny HTTP server for Modal, in a module of its own as a library would have it."""

from __future__ import annotations

import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import modal


def say(line: str) -> None:
    """A line of the container's log, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


class Handler(BaseHTTPRequestHandler):
    """Answers every GET with the task that serves it."""

    def do_GET(self) -> None:
        """The task id as the body."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(os.environ["MODAL_TASK_ID"].encode())


class TinyServer:
    """Starts before the snapshot, says what it sees at each hook, and can be told to fail at one of them."""

    greeting: str

    @modal.enter(snap=True)
    def start(self) -> None:
        """Serves from a thread that the exit hook must end."""
        say(f"start {self.greeting} key={os.environ['API_KEY']} offline={os.environ['OFFLINE']}")
        self._fail_at("start")
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        say(f"port={self.server.server_port}")

    @modal.enter(snap=False)
    def resume(self) -> None:
        """The new task's id is in the environment by now."""
        say(f"resume {os.environ['MODAL_TASK_ID']}")

    @modal.exit()
    def stop(self) -> None:
        """Ends the server and its thread."""
        say("stop")
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
        say("stopped")

    def _fail_at(self, hook: str) -> None:
        if os.environ.get("FAIL_AT") == hook:
            raise ValueError(f"told to fail at {hook}")
