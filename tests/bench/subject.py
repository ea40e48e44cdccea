"""A process under measurement: it takes jobs and gives results, one JSON line each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from bench.setting import ROOT


class Subject:
    """A process that answers jobs; a context manager. Its CPU time and memory are its own.

    Args:
        argv: what to run; by `ours`, a module of `bench.subjects`.
    """

    def __init__(self, argv: Sequence[str], *, env: dict[str, str] | None = None) -> None:
        self._popen = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, cwd=ROOT, start_new_session=True
        )

    @classmethod
    def ours(cls, module: str) -> Self:
        """A module of `bench.subjects`, in this environment."""
        return cls((sys.executable, "-m", f"bench.subjects.{module}"), env=ours_env())

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._popen.pid

    def send(self, **job: Any) -> None:
        """Hands in a job."""
        assert self._popen.stdin
        self._popen.stdin.write(json.dumps(job) + "\n")
        self._popen.stdin.flush()

    def result(self) -> dict[str, Any]:
        """The result of the oldest job."""
        assert self._popen.stdout
        line = self._popen.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._popen.args!r} ended with {self._popen.wait()} instead of a result")
        result: dict[str, Any] = json.loads(line)
        return result

    def ask(self, **job: Any) -> dict[str, Any]:
        """Hands in a job and waits for its result."""
        self.send(**job)
        return self.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._popen.stdin and self._popen.stdout
        self._popen.stdin.close()  # the end of its jobs
        try:
            self._popen.wait(1 if error else 30)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        self._popen.stdout.close()


def ours_env() -> dict[str, str]:
    """The environment in which modules of this package are found."""
    return os.environ | {"PYTHONPATH": str(ROOT / "tests")}


def clean_env() -> dict[str, str]:
    """The environment for the peers' programs: nothing of ours on their path."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
