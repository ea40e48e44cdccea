"""A child process: started, signalled and reaped here.

The child leads its own session and process group, so one signal reaches a wrapper and the server behind it. Its exit is
seen through a pidfd and *not* reaped until teardown is over: a zombie leader keeps the group's number from being reused
while the group is still being signalled. A guardian (`guardian.py`) ends it when we are gone without a teardown.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Self

import anyio

from supervisor.errors import SpawnError
from supervisor.linux import processes
from supervisor.linux.listeners import owners
from supervisor.linux.processes import COOKIE
from supervisor.process.exits import ExitReport, exit_fd, signal_name
from supervisor.process.guardian import Guardian
from supervisor.process.popen import popen

_GUARDIANS: Final = 5  # of one child, when somebody keeps ending them


class Process:
    """A running child. Use one event loop for `watch`; call `close` exactly once, at the end.

    Attributes:
        pid: of the child, its process group and its session.
        spawned_at: `time.monotonic()` at the spawn.
        stdout_fd, stderr_fd: non-blocking read ends; they belong to whoever pumps them, `close` closes them.
        exited: set as soon as the child has ended; `report` is set before.
    """

    def __init__(self, popen: subprocess.Popen[bytes], guardian: Guardian, cookie: str) -> None:
        assert popen.stdout and popen.stderr
        self.pid: Final = popen.pid
        self.spawned_at: Final = time.monotonic()
        self.stdout_fd: Final = popen.stdout.fileno()
        self.stderr_fd: Final = popen.stderr.fileno()
        self.exited: Final = anyio.Event()
        self.report: ExitReport | None = None
        self._cookie = cookie
        self._popen = popen
        self._guardian = guardian
        self._strays: dict[int, int] = {}  # for the next guardian
        self._reaped = False
        guardian.guard(self.pid, (self.stdout_fd, self.stderr_fd))
        for fd in (self.stdout_fd, self.stderr_fd):
            os.set_blocking(fd, False)
            _widen(fd)
        self._exit_fd = exit_fd(popen.pid)
        if cookie:
            processes.remember(cookie, self.pid, self._note_stray)

    @classmethod
    def start(cls, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path | None) -> Self:
        """Starts the command; returns once exec has succeeded. Blocks the calling thread for about 2 ms.

        Raises:
            SpawnError: not found, not executable, wrong architecture, out of processes or descriptors.
        """
        cookie = env.get(COOKIE, "")
        try:
            # Not in a thread: a hop costs more than the vfork, and an abandoned one could leak a child.
            guardian = Guardian(cookie)
        except OSError as error:
            raise SpawnError(
                argv=tuple(argv), reason=f"its guardian /bin/sh did not start: {error.strerror}"
            ) from error
        try:
            started = popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=cwd,
                env=env,
            )
        except (OSError, ValueError, RuntimeError) as error:
            guardian.dismiss()
            raise SpawnError(argv=tuple(argv), reason=_spawn_reason(error, cwd)) from error
        except BaseException:  # an interrupt; nobody can say whether there is a child by now
            guardian.strike()
            raise
        try:
            return cls(started, guardian, cookie)
        except BaseException as error:  # out of descriptors for the pidfd, or of threads in its place; an interrupt
            with started:
                os.killpg(started.pid, signal.SIGKILL)
            guardian.dismiss()
            if isinstance(error, OSError | RuntimeError):
                raise SpawnError(argv=tuple(argv), reason=_spawn_reason(error, cwd)) from error
            raise

    async def watch(self) -> None:
        """Waits for the child's end and sets `exited`; nothing is reaped. Cancellation leaves everything as it was."""
        await anyio.wait_readable(self._exit_fd)
        self.note_exit()

    def note_exit(self) -> bool:
        """Records the end if it has come; returns whether it has. Never blocks."""
        if self.report is None:
            code, by = None, None
            try:
                ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if ended is None:
                    return False
                if ended.si_code == os.CLD_EXITED:
                    code = ended.si_status
                else:
                    by = signal_name(ended.si_status)
            except ChildProcessError:
                self._reaped = True  # by somebody else
            uptime_s = time.monotonic() - self.spawned_at
            self.report = ExitReport(pid=self.pid, exit_code=code, signal=by, uptime_s=uptime_s)
            self.exited.set()
        return True

    def listeners(self, port: int) -> list[int]:
        """Processes of the child's that listen on a port; empty where /proc does not tell. A look at all of /proc."""
        return [owner.pid for owner in owners(port, self.pid, self._cookie) if owner.mine and owner.pid]

    def members(self) -> dict[int, int]:
        """The child and all that descend from it: each living one, and when it began. A look at all of /proc."""
        return {member.pid: member.began for member in processes.living(self.pid, self._cookie)}

    def pipe_holders(self) -> dict[int, int]:
        """Processes that hold the write end of the child's stdout or stderr, which only descendants get."""
        return processes.pipe_writers({os.fstat(fd).st_ino for fd in (self.stdout_fd, self.stderr_fd)})

    def signal_all(self, number: signal.Signals, members: Mapping[int, int]) -> None:
        """Signals the group, and those of the members that left it; without its leader's zombie, the members only."""
        if self._holds_its_number():
            with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
                os.killpg(self.pid, number)
        for pid, began in members.items():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if self._reaped or os.getpgid(pid) != self.pid:
                    _signal_one(pid, began, number)

    def signal_leader(self, number: signal.Signals) -> None:
        """Signals the child alone, unless it has been reaped."""
        if self._holds_its_number():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self.pid, number)

    def _holds_its_number(self) -> bool:
        """Whether the child runs or is our zombie: else its number may be somebody else's by now."""
        try:
            self._reaped or os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            self._reaped = True
        return not self._reaped

    async def keep_guarded(self, on_replaced: Callable[[str], None]) -> None:
        """Replaces a guardian that somebody ended, and says so; runs until cancelled."""
        for _ in range(_GUARDIANS):
            await anyio.wait_readable(self._guardian.ended_fd)
            lost = self._guardian
            lost.dismiss()
            try:
                self._guardian = Guardian(self._cookie)
            except OSError as error:
                on_replaced(f"the guardian (pid {lost.pid}) was ended, and there is no other: {error.strerror}")
                break
            self._guardian.guard(self.pid, (self.stdout_fd, self.stderr_fd))
            for pid, began in self._strays.items():
                self._guardian.tell_stray(pid, began)
            on_replaced(f"the guardian (pid {lost.pid}) was ended; pid {self._guardian.pid} stands in its place")
        await anyio.sleep_forever()

    def _note_stray(self, stray: processes.Stat) -> None:
        self._strays[stray.pid] = stray.began
        self._guardian.tell_stray(stray.pid, stray.began)

    def close(self) -> None:
        """Reaps the child if it has ended, and what else of its descendants came to us; closes every descriptor.

        A child that has not ended is left to the guardian, which kills it; one that outlives that (stuck in the kernel,
        for example in a GPU driver) stays behind as a process.
        """
        assert self._popen.stdout and self._popen.stderr
        seen = processes.forget(self._cookie)
        self._popen.stdout.close()
        self._popen.stderr.close()
        os.close(self._exit_fd)
        # Orphans come to us when we adopt them or are PID 1. Before the child, whose number is their session's.
        for orphan in processes.own_children() if seen else ():
            if orphan.zombie and orphan.pid != self.pid and seen.get(orphan.pid) == orphan.began:
                reap(orphan.pid)
        if self.note_exit():
            self._popen.wait()
            self._reaped = True
            self._guardian.dismiss()
        else:  # stuck in the kernel; or the teardown itself was interrupted
            self._guardian.strike()
            self._reaped = self._popen.poll() is not None


def reap(pid: int) -> None:
    """Takes the exit status of one of our children, if it has ended and nobody else took it."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _signal_one(pid: int, began: int, number: signal.Signals) -> None:
    """Signals a process, unless it has ended and its number is another's by now."""
    fd: int | None = None
    if hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):  # kernels before 5.3 and gVisor have none
            fd = os.pidfd_open(pid)
    try:
        if (found := processes.stat(pid)) is None or found.began != began:
            return
        if fd is None:
            os.kill(pid, number)
        else:
            signal.pidfd_send_signal(fd, number)  # race-free: the descriptor was opened before the look
    finally:
        if fd is not None:
            os.close(fd)


def _widen(fd: int) -> None:
    """Asks for a 1 MiB pipe: a child that logs in bursts then runs on while we are busy elsewhere."""
    import fcntl

    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):  # over the user's quota: the default of 64 KiB does
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 1 << 20)


def _spawn_reason(error: OSError | ValueError | RuntimeError, cwd: Path | None) -> str:
    if not isinstance(error, OSError):  # NUL or a lone surrogate in an argument, a variable or a path; no thread
        return str(error)
    if cwd is not None and not cwd.is_dir():
        return f"the working directory {cwd} does not exist"
    hints = {
        "FileNotFoundError": "no such program on PATH, or its interpreter is missing",
        "PermissionError": "it is not executable, or its file system is mounted noexec",
    }
    hint = hints.get(type(error).__name__, "")
    return f"{error.strerror}" + (f" ({hint})" if hint else "")
