"""The commands of the pipeline: output streamed to the log as it comes, the last lines kept for the error."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from supervisor.errors import SupervisorError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from filelock import FileLock

__all__ = ["CommandFailed", "Run", "emit", "host_lock", "run_command", "which"]

TAIL_LINES: Final = 60  # a failed compile prints its own lines, then those of the jobs that ran beside it


class Run(Protocol):
    """Runs one command to its end and returns the last lines of its output."""

    def __call__(self, argv: Sequence[str], *, cwd: Path) -> str: ...


@dataclass(eq=False, repr=False, kw_only=True)
class CommandFailed(SupervisorError):
    """A command of the pipeline ended badly, or could not be started (`exit_code` and `signal` are None then)."""

    argv: tuple[str, ...]
    cwd: str
    exit_code: int | None
    signal: str | None
    reason: str
    tail: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        return f"`{' '.join(self.argv)}` {self.reason} (in {self.cwd})."


def emit(event: str, **fields: Any) -> None:
    """One line to the log of the pipeline."""
    import structlog

    structlog.get_logger("warmboot.pipeline").info(event, **fields)


def host_lock(root: Path, name: str, *, timeout_s: float = -1) -> FileLock:
    """The lock of `name` in `root` among the processes and threads of this host; -1 waits without limit.

    The lock file lies in the host's temporary directory, not on the volume: each container has a mount of its own, and
    no lock on it would reach the others. The kernel lets go when the holder dies.
    """
    from filelock import FileLock  # the serving image has none, and needs none

    key = hashlib.sha256(f"{root.resolve()}\0{name}".encode()).hexdigest()[:24]
    return FileLock(Path(tempfile.gettempdir()) / f"warmboot-{os.getuid()}-{key}.lock", timeout=timeout_s)


def which(program: str) -> str | None:
    """Where a tool is: on PATH, or beside this Python, where PyPI's `cmake` and `ninja` go."""
    return shutil.which(program, path=_path())


def run_command(argv: Sequence[str], *, cwd: Path) -> str:
    """Run a command; its output, both streams in one, goes to the log line by line.

    Blocks until the command has ended; the caller's own deadline is the limit. A command is killed when the wait for it
    is interrupted; when this process is killed, the pipe breaks and ninja ends with its next line.
    Tools are found as `which` finds them, also those that the command runs itself.

    Args:
        argv: the command.
        cwd: where to run it.

    Returns:
        Its last lines, 60 at most.

    Raises:
        CommandFailed: it could not be started, exited with another code than 0, or was killed.
    """
    program = which(argv[0])
    # Nobody is there to answer git's question for a password.
    env = {**os.environ, "PATH": _path(), "GIT_TERMINAL_PROMPT": "0"}
    try:
        if program is None:
            raise FileNotFoundError(2, f"there is no {argv[0]!r} on PATH; install it")
        process = subprocess.Popen(
            [program, *argv[1:]],
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        reason = f"could not be started: {error.strerror or error}"
        raise CommandFailed(argv=tuple(argv), cwd=str(cwd), exit_code=None, signal=None, reason=reason) from error

    emit("command.started", argv=" ".join(argv))
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    with process:
        try:
            assert process.stdout
            for line in process.stdout:
                tail.append(line.rstrip())
                emit("command.output", line=line.rstrip())
            code = process.wait()
        except BaseException:
            process.kill()
            raise
    if code:
        name = signal.Signals(-code).name if code < 0 else None
        raise CommandFailed(
            argv=tuple(argv),
            cwd=str(cwd),
            exit_code=code if code > 0 else None,
            signal=name,
            reason=f"was killed by {name}" if name else f"exited with code {code}",
            tail=tuple(tail),
        )
    return "\n".join(tail)


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)])
