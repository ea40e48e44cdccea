"""Endpoints for tests of the smoke test, and questions to its report."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hooks.http.endpoint import Endpoint
from hooks.smoke.report import Row, SmokeReport
from supervisor.child import Child
from supervisor.engines.llama_cpp import LLAMA_CPP
from supervisor.redact import Secret
from tools.serve import FAKE, KEY

JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"


def endpoint_of(child: Child, **fields: Any) -> Endpoint:
    given: dict[str, Any] = {"url": child.url, "api_key": Secret(KEY), "timeout_s": 20.0, "dialect": LLAMA_CPP}
    return Endpoint(**(given | fields))


def failed(report: SmokeReport) -> set[str]:
    return {row.name for row in report.rows if row.outcome == "failed"}


def row_of(report: SmokeReport, name: str) -> Row:
    (row,) = [row for row in report.rows if row.name == name]
    return row


def number(report: SmokeReport, name: str, measure: str) -> float:
    value = row_of(report, name).numbers[measure]
    assert value is not None
    return value


def answering(**message: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
    return JSON_HEAD + json.dumps({"choices": [choice]}).encode()


class Fake:
    """The fake server on one port, which may be ended and started anew there. Does not wait until it is ready."""

    def __init__(self) -> None:
        self.port = 0
        self.process: subprocess.Popen[str] | None = None

    def start(self, *flags: str) -> None:
        argv = [sys.executable, str(FAKE), "--port", str(self.port), "--alias", "m", "--api-key", KEY]
        argv += ["--metrics", *flags]
        self.process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if "--bind-late" in flags:
            return
        assert self.process.stderr
        bound = next(line for line in self.process.stderr if "bound the HTTP server socket" in line)
        self.port = int(bound.rpartition(":")[2])

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.communicate()
        self.process = None

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(url=f"http://127.0.0.1:{self.port}", api_key=Secret(KEY), timeout_s=20, dialect=LLAMA_CPP)


@contextmanager
def a_fake() -> Iterator[Fake]:
    fake = Fake()
    try:
        yield fake
    finally:
        fake.stop()
