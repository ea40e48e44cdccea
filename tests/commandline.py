"""`supervise` as a process of its own: started, read, ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from support import FAKE


@contextmanager
def supervise(
    *args: str, env: dict[str, str] | None = None, under: tuple[str, ...] = ()
) -> Iterator[subprocess.Popen[str]]:
    """`supervise ARGS` as a process, started by `under`; killed at the end if it still runs."""
    argv = [*under, sys.executable, "-m", "supervisor", *args]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **(env or {})}
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def run(*args: str, env: dict[str, str] | None = None, under: tuple[str, ...] = ()) -> tuple[int, str, str]:
    """Runs to the end: exit code, stdout, stderr."""
    with supervise(*args, env=env, under=under) as process:
        out, err = process.communicate(timeout=50)
        return process.returncode, out, err


def events_until(process: subprocess.Popen[str], name: str) -> list[dict[str, Any]]:
    """JSON events from stderr, up to the first one of a name."""
    assert process.stderr
    seen = []
    for line in process.stderr:
        seen.append(json.loads(line))
        if seen[-1]["event"] == name:
            return seen
    raise AssertionError(f"no {name} in {seen}")


FAKE_ARGV = [sys.executable, "-I", "-S", str(FAKE), "--port", "{port}"]


def exec_json(*flags: str, options: tuple[str, ...] = ()) -> tuple[str, ...]:
    """`exec` of the fake server with JSON logs."""
    return ("exec", "--log-format", "json", *options, "--", *FAKE_ARGV, *flags)
