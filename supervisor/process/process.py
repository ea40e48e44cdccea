"""The child process: the only module that spawns, signals or reaps.

The child leads its own session and process group, so one signal reaches a wrapper and the server behind it. A
*guardian* (a `/bin/sh` that blocks on a pipe from us) kills the group when we are gone without a teardown, SIGKILL
included. That covers what PR_SET_PDEATHSIG does not: grandchildren, a spawning thread that ends before the process, and
macOS; and it needs no code between fork and exec.

The exit is seen through a pidfd and *not* reaped until teardown is over: a zombie leader keeps the group's number from
being reused while the group is still being signalled.

Over 250 lines because spawning, signalling and reaping share one process's state, and nobody else may do them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import anyio

from supervisor.errors import SpawnError
from supervisor.linux import processes
from supervisor.linux.processes import COOKIE

# The group is known unless we died before we could name it; the cookie finds it then, and whoever left the group.
# Twice, because a child between fork and exec has no cookie yet.
_GUARDIAN: Final = """
trap "" HUP INT TERM
read -r group
read -r never
[ -z "$group" ] || kill -s KILL -- "-$group"
[ -n "$1" ] || exit 0
for again in 1 2; do
    for environ in /proc/[0-9]*/environ; do
        if grep -qs "WARMBOOT_LIFE=$1" "$environ"; then
            pid=${environ#/proc/}
            kill -s KILL "${pid%/environ}"
        fi
    done
    sleep 0.1
done
"""
_pipes: set[int] = set()  # our ends of the guardians' pipes


def _close_pipes() -> None:
    # A fork of the host (multiprocessing) would hold the pipes open, and the guardians would never see our end.
    for fd in _pipes:
        with contextlib.suppress(OSError):
            os.close(fd)
    _pipes.clear()


os.register_at_fork(after_in_child=_close_pipes)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitReport:
    """How a process ended: one of `exit_code` and `signal` is set. `uptime_s` counts from the spawn.

    Neither is set when somebody else in this process reaped the child, or SIGCHLD is ignored: then nobody knows.
    """

    pid: int
    exit_code: int | None
    signal: str | None
    uptime_s: float


class Process:
    """A running child. Use one event loop for `watch`; call `close` exactly once, at the end.

    Attributes:
        pid: of the child, its process group and its session.
        spawned_at: `time.monotonic()` at the spawn.
        stdout_fd, stderr_fd: non-blocking read ends; they belong to whoever pumps them, `close` closes them.
        exited: set as soon as the child has ended; `report` is set before.
    """

    def __init__(self, popen: subprocess.Popen[bytes], guardian: subprocess.Popen[bytes], cookie: str | None) -> None:
        assert popen.stdout and popen.stderr
        self._cookie = cookie
        self._popen = popen
        self._guardian = guardian
        self._exit_fd = _exit_fd(popen.pid)
        self.pid: Final = popen.pid
        self.spawned_at: Final = time.monotonic()
        self.stdout_fd: Final = popen.stdout.fileno()
        self.stderr_fd: Final = popen.stderr.fileno()
        self.exited: Final = anyio.Event()
        self.report: ExitReport | None = None
        self._reaped = False  # by somebody else

    @classmethod
    def start(cls, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path | None) -> Self:
        """Starts the command; returns once exec has succeeded. Blocks the calling thread for about 2 ms.

        Raises:
            SpawnError: not found, not executable, wrong architecture, out of processes or descriptors.
        """
        try:
            # Not in a thread: a hop costs more than the vfork, and an abandoned one could leak a child.
            guardian = subprocess.Popen(
                ("/bin/sh", "-c", _GUARDIAN, "sh", env.get(COOKIE, "")),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={"PATH": os.defpath},
                start_new_session=True,
            )
        except OSError as error:
            raise SpawnError(
                argv=tuple(argv), reason=f"its guardian /bin/sh did not start: {error.strerror}"
            ) from error
        assert guardian.stdin
        _pipes.add(guardian.stdin.fileno())
        try:
            return cls._start(argv, env, cwd, guardian)
        except (OSError, ValueError, RuntimeError) as error:
            _dismiss(guardian)
            raise SpawnError(argv=tuple(argv), reason=_spawn_reason(error, cwd)) from error
        except BaseException:
            _dismiss(guardian)
            raise

    @classmethod
    def _start(
        cls, argv: Sequence[str], env: Mapping[str, str], cwd: Path | None, guardian: subprocess.Popen[bytes]
    ) -> Self:
        popen = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=cwd,
            env=env,
            start_new_session=True,
        )
        assert guardian.stdin and popen.stdout and popen.stderr
        with contextlib.suppress(
            BrokenPipeError
        ):  # a guardian that somebody killed protects nothing, and hurts nothing
            guardian.stdin.write(b"%d\n" % popen.pid)
            guardian.stdin.flush()
        try:
            for pipe in (popen.stdout, popen.stderr):
                os.set_blocking(pipe.fileno(), False)
                _widen(pipe.fileno())
            return cls(popen, guardian, env.get(COOKIE))
        except (OSError, RuntimeError):  # out of descriptors for the pidfd, or of threads in its place
            os.killpg(popen.pid, signal.SIGKILL)
            popen.communicate()
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
                    by = _signal_name(ended.si_status)
            except ChildProcessError:
                self._reaped = True
            uptime_s = time.monotonic() - self.spawned_at
            self.report = ExitReport(pid=self.pid, exit_code=code, signal=by, uptime_s=uptime_s)
            self.exited.set()
        return True

    def listeners(self, port: int) -> list[int]:
        """Processes of the child's that listen on a port; empty where /proc does not tell."""
        try:
            owners = processes.owners(port, self.pid, self._cookie)
        except OSError:  # out of descriptors
            return []
        return [owner.pid for owner in owners if owner.mine and owner.pid]

    def signal_all(self, number: signal.Signals) -> int:
        """Signals the group, and descendants that left it; returns how many of all these were alive."""
        try:
            members = processes.members(self.pid, self._cookie)
        except OSError:  # out of descriptors: at least the group gets it
            members = []
        if not self._reaped:  # without its leader's zombie the group's number may be somebody else's by now
            with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
                os.killpg(self.pid, number)
        for pid in members:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if os.getpgid(pid) != self.pid:
                    os.kill(pid, number)
        return len(members)

    def close(self) -> None:
        """Reaps the child if it has ended, dismisses the guardian, closes every descriptor.

        A child that outlived KILL (stuck in the kernel, for example in a GPU driver) stays behind as a process, and the
        guardian stays with it.
        """
        assert self._popen.stdout and self._popen.stderr
        self._popen.stdout.close()
        self._popen.stderr.close()
        os.close(self._exit_fd)
        if self.report is not None:
            self._popen.wait()
            with contextlib.suppress(ChildProcessError):  # orphans of the group come to us when we are PID 1
                while os.waitpid(-self.pid, os.WNOHANG)[0]:
                    pass
            _dismiss(self._guardian)


def _dismiss(guardian: subprocess.Popen[bytes]) -> None:
    # Killed before its pipe closes: an end of file would make it kill the group.
    guardian.kill()
    guardian.wait()
    assert guardian.stdin
    _pipes.discard(guardian.stdin.fileno())
    with contextlib.suppress(BrokenPipeError):
        guardian.stdin.close()


def _exit_fd(pid: int) -> int:
    """A descriptor that becomes readable when the process ends: a pidfd, or a pipe from a thread that waits."""
    if hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):  # kernels before 5.3 and gVisor have none
            return os.pidfd_open(pid)
    read_end, write_end = os.pipe()

    def wait() -> None:
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        os.close(write_end)

    try:
        threading.Thread(target=wait, name=f"wait-{pid}", daemon=True).start()
    except RuntimeError:
        os.close(read_end)
        os.close(write_end)
        raise
    return read_end


def _widen(fd: int) -> None:
    """Asks for a 1 MiB pipe: a child that logs in bursts then runs on while we are busy elsewhere."""
    import fcntl

    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with contextlib.suppress(OSError):  # over the user's quota: the default of 64 KiB does
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 1 << 20)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names
        return f"signal {number}"


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
