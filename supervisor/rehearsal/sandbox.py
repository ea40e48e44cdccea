"""One gVisor sandbox over this machine's own file system: run, checkpoint, restore, through `runsc`.

What runs inside sees the host's root under an overlay (its writes stay in memory), loopback as its only network, and
the folders that are mounted on purpose. A checkpoint saves all of it, every process with its threads, pipes, sockets
and memory, and ends the sandbox; restores of the image begin where it stood. Modal's containers run on gVisor too.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import anyio

from supervisor.errors import SupervisorError
from supervisor.linux.processes import COOKIE
from supervisor.logs.pump import LogPump, Stream
from supervisor.process.managed import managed
from supervisor.process.process import Process
from supervisor.process.teardown import teardown
from supervisor.profile import LogLimits, Stop
from supervisor.redact import Redactor
from supervisor.rehearsal.bundle import Mount, Program

__all__ = ["ListenerNotSaved", "Running", "Sandbox", "SandboxFailed", "SandboxUnavailable", "runsc"]

_STOP: Final = Stop(grace_s=5.0)
# Lines as they are: the events among them are JSON, of which the default parser would keep the text alone.
_LIMITS: Final = LogLimits(max_line_bytes=1 << 20, tail_lines=20, parse=lambda line: ("info", line))
_DELETE_S: Final = 20.0
_SHOWN: Final = 300  # characters of what runsc says
_WAITERS: Final = (
    ". This runsc saves no TCP listener that an event loop (epoll) waits on; that says nothing about the server. "
    "A newer runsc may"
)
_OWN_WORDS: Final = ("running container:", "creating container:", "starting container:")
_NOT_PERMITTED: Final = ("operation not permitted", "permission denied", "must be run as root")

OnLine = Callable[[Stream, str], None]


@dataclass(eq=False, repr=False, kw_only=True)
class SandboxUnavailable(SupervisorError):
    """This machine cannot run a sandbox; nothing was started."""

    cli_status = 2
    reason: str

    @property
    def summary(self) -> str:
        return f"no sandbox: {self.reason}."


@dataclass(eq=False, repr=False, kw_only=True)
class SandboxFailed(SupervisorError):
    """A command of `runsc` failed, or the sandbox ended by itself."""

    what: str
    exit_code: int | None
    tail: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        how = "" if self.exit_code is None else f" (exit code {self.exit_code})"
        return f"{self.what}{how}."


class ListenerNotSaved(SandboxFailed):
    """This runsc saves no TCP listener that is registered with an epoll, and a process in the sandbox has one."""


def runsc() -> str:
    """The path of the program.

    Raises:
        SandboxUnavailable: it is not installed, or this is no Linux, or this user may not.
    """
    if sys.platform != "linux":
        raise SandboxUnavailable(reason="gVisor runs on Linux only; on another system, rehearse in a Linux VM")
    if (found := shutil.which("runsc")) is None:
        reason = "runsc (gVisor) is not installed. On Debian and Ubuntu: apt-get install runsc"
        raise SandboxUnavailable(reason=f"{reason}; others: https://gvisor.dev/docs/user_guide/install")
    if os.geteuid() != 0:
        raise SandboxUnavailable(reason="runsc saves and restores as root only: run it with `sudo -E`")
    return found


class Sandbox:
    """A program in a sandbox, over one checkpoint and any number of restores, one at a time.

    Args:
        folder: a new folder of our own, for the image, the bundle and what runsc remembers.
        argv, env, cwd: of the program.
        redact: applied to its output.
        on_line: sees each line of its output, as it comes; must not block.
    """

    def __init__(
        self,
        folder: Path,
        *,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: Path,
        redact: Redactor,
        on_line: OnLine,
    ) -> None:
        self._runsc = runsc()
        self._folder = folder
        self._program = Program(argv=tuple(argv), env=dict(env), cwd=cwd)
        self._redact = redact
        self._on_line = on_line
        self._name = f"warmboot-{os.getpid()}-{folder.name}"
        self.image = folder / "image"

    @asynccontextmanager
    async def run(self, mounts: Sequence[Mount], *, restore: bool = False) -> AsyncIterator[Running]:
        """The sandbox while the context lasts, begun anew or from the image. Leaving stops whatever runs in it."""
        bundle = self._folder / "bundle"
        self._program.write(bundle, mounts)
        image = ("--image-path", str(self.image)) if restore else ()
        command = "restore" if restore else "run"
        try:
            async with self._spawn((command, "--bundle", str(bundle), *image, self._name), self._on_line) as running:
                yield running
        finally:
            with anyio.move_on_after(_DELETE_S, shield=True):
                async with self._spawn(("delete", "--force", self._name), _ignore) as deletion:
                    await deletion.ended.wait()

    async def checkpoint(self) -> int:
        """Saves the running sandbox, which ends it; returns the size of the image in bytes.

        Raises:
            ListenerNotSaved: a TCP listener is registered with an epoll.
            SandboxFailed: it could not be saved for another reason.
        """
        self.image.mkdir()
        said: list[str] = []
        argv = ("checkpoint", "--image-path", str(self.image), self._name)
        async with self._spawn(argv, lambda _, line: said.append(line)) as running:
            await running.ended.wait()
        if running.exit_code != 0:
            # Its words come first; a trace of its own stack follows.
            words = "".join(line[:_SHOWN] for line in said[:1])
            what = f"runsc cannot save this sandbox: {words}"
            if "tcp.endpoint" in words:
                raise ListenerNotSaved(what=f"{what}{_WAITERS}", exit_code=running.exit_code)
            raise SandboxFailed(what=what, exit_code=running.exit_code)
        return sum(file.stat().st_size for file in self.image.iterdir())

    @asynccontextmanager
    async def _spawn(self, argv: Sequence[str], on_line: OnLine) -> AsyncIterator[Running]:
        state = self._folder / "state"
        state.mkdir(exist_ok=True)
        flags = ("--root", str(state), "--network=none", "--overlay2=root:memory")
        env = {"PATH": os.environ.get("PATH", os.defpath), COOKIE: self._name}
        process = Process.start((self._runsc, *flags, *argv), env=env, cwd=None)
        fds: dict[Stream, int] = {"stdout": process.stdout_fd, "stderr": process.stderr_fd}
        pump = LogPump(
            fds,
            _LIMITS,
            self._redact,
            on_line=lambda stream, _, line: on_line(stream, line),
            on_dropped=lambda _lines, _bytes: None,
        )

        async def end(_: Exception | None) -> None:
            await teardown(process, pump, _STOP, port=0)

        async with managed(process, pump, end):
            yield Running(argv[0], process, pump)


class Running:
    """A command of runsc that runs, or has run."""

    def __init__(self, command: str, process: Process, pump: LogPump) -> None:
        self._command = command
        self._process = process
        self._pump = pump

    @property
    def ended(self) -> anyio.Event:
        """Set once the command has ended; `run` and `restore` end with the program in the sandbox."""
        return self._process.exited

    @property
    def exit_code(self) -> int | None:
        """How it ended; None while it runs, or when a signal ended it."""
        return self._process.report.exit_code if self._process.report else None

    async def drained(self) -> None:
        """Waits until all that it wrote was seen, for a moment at most: a descendant may hold its pipes open."""
        with anyio.move_on_after(_STOP.drain_s):
            await self._pump.drained.wait()

    def failure(self) -> SandboxUnavailable | SandboxFailed:
        """The error for an end that nobody asked for."""
        tail = self._pump.tail()
        own = [line for line in tail if line.startswith(_OWN_WORDS)]
        if self._command == "run" and any(said in line.lower() for line in own for said in _NOT_PERMITTED):
            reason = f"runsc may not make one here, as in most containers that are not privileged. It says: {own[0]}"
            return SandboxUnavailable(reason=reason)
        return SandboxFailed(what=f"`runsc {self._command}` ended", exit_code=self.exit_code, tail=tuple(own) or tail)


def _ignore(_stream: Stream, _line: str) -> None:
    pass
