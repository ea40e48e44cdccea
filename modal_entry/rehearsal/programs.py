"""Modal's own programs, as processes that talk to a local control plane; the CLI, and a deploy with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from modal_entry.rehearsal.control_plane import ControlPlane
from supervisor.errors import SupervisorError

__all__ = ["Cli", "Process", "ProgramFailed", "deploy"]

R = TypeVar("R")
OnLine = Callable[[str], None]

_TAIL_LINES: Final = 20
_REST_S: Final = 1.0  # for the output that is still in the pipe when a process has ended


@dataclass(eq=False, repr=False, kw_only=True)
class ProgramFailed(SupervisorError):
    """One of Modal's programs ended, or took too long, before it did what was waited for.

    Attributes:
        program: what was run.
        reason: what happened to it.
        exit_code: negative for a signal; None while it runs.
        tail: its last lines.
    """

    program: str
    reason: str
    exit_code: int | None
    tail: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        return f"`{self.program}` {self.reason}."


class Process(AbstractContextManager["Process"]):
    """A Python module as a process, with its output; leaving the context kills it and its process group.

    Args:
        plane: Whom it talks to.
        module, args: As `python -m` takes them.
        cwd, env: Of the process; of this process's environment it sees PATH, LANG and TMPDIR.
        on_line: Sees each line of its output as it comes, on a thread of its own.
    """

    def __init__(
        self,
        plane: ControlPlane,
        module: str,
        *args: str,
        cwd: Path,
        env: Mapping[str, str],
        on_line: OnLine | None = None,
    ) -> None:
        self.plane = plane
        self.lines: list[str] = []
        self.ended = False
        self._argv = [sys.executable, "-m", module, *args]
        self._cwd = cwd
        self._on_line = on_line
        inherited = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        self._env = {**inherited, "PYTHONUNBUFFERED": "1", "MODAL_SERVER_URL": plane.url, **env}

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._argv,
            cwd=self._cwd,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._pumping = threading.Thread(target=self._pump, name=f"output of {self._argv[2]}")
        self._watching = threading.Thread(target=self._watch, name=f"end of {self._argv[2]}")
        self._pumping.start()
        self._watching.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        if not self.ended:
            with contextlib.suppress(ProcessLookupError):  # it has ended just now, and nobody of its group is left
                os.killpg(self.pid, signal.SIGKILL)
        for thread in (self._pumping, self._watching):
            thread.join(10)
        if exc is not None and not isinstance(exc, ProgramFailed):
            exc.add_note(f"output of {' '.join(self._argv[2:])}:\n{self.output}")
        if self._pumping.is_alive() or self._watching.is_alive():
            left = self.failed("left a descendant that holds its output open")
            if exc is None:
                raise left
            exc.add_note(str(left))
            return
        assert self._process.stdout
        self._process.stdout.close()

    def _pump(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            text = line.rstrip("\n")
            if self._on_line is not None:
                self._on_line(text)
            with self.plane.news:
                self.lines.append(text)
                self.plane.news.notify_all()

    def _watch(self) -> None:
        self._process.wait()
        self._pumping.join(_REST_S)  # its last lines say why
        with self.plane.news:
            self.ended = True
            self.plane.news.notify_all()

    @property
    def pid(self) -> int:
        """The process, and the leader of its group."""
        return self._process.pid

    @property
    def output(self) -> str:
        """What it wrote so far, both streams in one."""
        return "\n".join(self.lines)

    @property
    def returncode(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.returncode

    def failed(self, reason: str) -> ProgramFailed:
        """The error for this process; it carries the last lines of its output."""
        program = " ".join(["python", *self._argv[1:]])
        tail = tuple(self.lines[-_TAIL_LINES:])
        return ProgramFailed(program=program, reason=reason, exit_code=self.returncode, tail=tail)

    def until(self, seen: Callable[[], R], limit_s: float, what: str) -> R:
        """Waits for something that the process does.

        Raises:
            ProgramFailed: it ended before, or `limit_s` passed.
        """
        ends = time.monotonic() + limit_s
        with self.plane.news:
            while not (found := seen()):
                if self.ended:
                    raise self.failed(f"ended with exit code {self.returncode} before {what}")
                if not self.plane.news.wait(ends - time.monotonic()):
                    raise self.failed(f"gave no sign of {what} within {limit_s:g} s")
        return found

    def line(self, text: str, limit_s: float = 20) -> str:
        """The first line of output that contains a text."""
        return self.until(lambda: next((x for x in self.lines if text in x), None), limit_s, repr(text)) or ""

    def wait(self, limit_s: float = 20) -> int:
        """Its exit code, once it ended."""
        self.until(lambda: self.ended, limit_s, "its end")
        return self._process.returncode


class Cli(Process):
    """`modal ARGS`, with credentials for the plane and with none of the caller's settings."""

    def __init__(
        self,
        plane: ControlPlane,
        *args: str,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        on_line: OnLine | None = None,
    ) -> None:
        settings = {
            "HOME": str(cwd),
            "MODAL_CONFIG_PATH": os.devnull,
            "MODAL_TOKEN_ID": "ak-local",
            "MODAL_TOKEN_SECRET": "as-local",
            "TERM": "dumb",
            "COLUMNS": "200",
        }
        super().__init__(plane, "modal", *args, cwd=cwd, env={**settings, **(env or {})}, on_line=on_line)


def deploy(
    plane: ControlPlane,
    *args: str,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    limit_s: float = 40,
    on_line: OnLine | None = None,
) -> Cli:
    """`modal deploy ARGS`, run to its end: look at `returncode`, `output`, and what the plane recorded."""
    with Cli(plane, "deploy", *args, cwd=cwd, env=env, on_line=on_line) as cli:
        cli.wait(limit_s)
    return cli
