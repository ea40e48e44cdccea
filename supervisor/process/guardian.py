"""The guardian: a `/bin/sh` that ends the child and what descends from it when this process is gone without a teardown.

It blocks on a pipe from us, so that any end of ours wakes it, SIGKILL included. That covers what PR_SET_PDEATHSIG does
not: grandchildren, a spawning thread that ends before the process, and macOS; and it needs no code between fork and
exec of the child.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import Final

from supervisor.linux import processes
from supervisor.process.popen import popen

# What it reads: `child PID PIPE PIPE` once, the inodes being those of the child's stdout and stderr; then `stray PID
# TICKS` for each member that neither session nor cookie tells, TICKS being when it began. Until it has read the first,
# the cookie alone says who belongs.
# On our end it stops and collects, until nothing new is found, the child's session, carriers of the cookie, strays, who
# holds the write end of a pipe, and the descendants of all these; then it kills them. Twice, because a child between
# fork and exec has no cookie yet. Stopped first, because a process that ends leaves its children without descent.
_SCRIPT: Final = r"""
trap "" HUP INT TERM
cookie=$1 child= pipes= strays=
while read -r kind pid more; do
    case $kind in
        child) child=$pid; for inode in $more; do pipes="$pipes -e pipe:.$inode.\$"; done ;;
        stray) strays="$strays $pid:$more " ;;
    esac
done
[ -n "$child$cookie" ] || exit 0
if [ ! -r /proc/self/stat ]; then
    [ -z "$child" ] || kill -s KILL -- "-$child"
    exit 0
fi
take() {
    case $found in *" $1 "*) ;; *) kill -s STOP "$1" && found="$found$1 " && new=1 ;; esac
}
collect() {
    for stat in /proc/[0-9]*/stat; do
        read -r line < "$stat" || continue
        pid=${stat#/proc/}; pid=${pid%/stat}
        set -- ${line##*) }
        case $1 in Z|X) continue ;; esac
        case $found in *" $2 "*) take "$pid"; continue ;; esac
        case $strays in *" $pid:${20} "*) take "$pid"; continue ;; esac
        [ "$4" != "$child" ] || take "$pid"
    done
    [ -z "$cookie" ] || for environ in $(grep -ls -e "WARMBOOT_LIFE=$cookie" /proc/[0-9]*/environ); do
        pid=${environ#/proc/}; take "${pid%/environ}"
    done
    [ -z "$pipes" ] || for pid in $(ls -l /proc/[0-9]*/fd | grep -e ^/proc/ $pipes | while read -r mode rest; do
        case $mode in /proc/*) pid=${mode#/proc/}; pid=${pid%/fd:} ;; l-w*) echo "$pid" ;; esac
    done); do
        take "$pid"
    done
}
for again in 1 2; do
    found=" " new=1
    while [ -n "$new" ]; do new=; collect; done
    [ -z "$child" ] || kill -s KILL -- "-$child"
    for pid in $found; do kill -s KILL "$pid"; done
    sleep 0.1
done
"""
_STRIKE_S: Final = 5.0
_pipes: set[int] = set()  # our ends of the guardians' pipes


def _close_pipes() -> None:
    # A fork of the host (multiprocessing) would hold the pipes open, and the guardians would never see our end.
    for fd in _pipes:
        with contextlib.suppress(OSError):
            os.close(fd)
    _pipes.clear()


os.register_at_fork(after_in_child=_close_pipes)


class Guardian:
    """A running guardian; of a child once `guard` was called. `dismiss` or `strike` it exactly once.

    Attributes:
        pid: of the guardian.
        ended_fd: readable as soon as the guardian has ended, whatever ended it.
    """

    def __init__(self, cookie: str) -> None:
        """Starts it.

        Raises:
            OSError: there is no /bin/sh, or no process or descriptor to be had.
        """
        self._popen = popen(
            ("/bin/sh", "-c", _SCRIPT, "sh", cookie),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={"PATH": os.defpath, "LC_ALL": "C"},
        )
        assert self._popen.stdin and self._popen.stdout
        self.pid: Final = self._popen.pid
        self.ended_fd: Final = self._popen.stdout.fileno()  # only the guardian writes there, and it never does
        os.set_blocking(self._popen.stdin.fileno(), False)  # whoever stops the guardian does not stop us
        _pipes.add(self._popen.stdin.fileno())
        processes.helpers.add(self.pid)

    def guard(self, child: int, pipes: tuple[int, int]) -> None:
        """Tells it whom to end: the child, and whoever holds the write ends of its stdout and stderr."""
        inodes = " ".join(str(os.fstat(pipe).st_ino) for pipe in pipes)
        self._tell(f"child {child} {inodes}\n")

    def tell_stray(self, pid: int, began: int) -> None:
        """Tells it of a member that it could not find; on any thread."""
        self._tell(f"stray {pid} {began}\n")

    def _tell(self, line: str) -> None:
        assert self._popen.stdin
        with contextlib.suppress(OSError, ValueError):  # killed by somebody, or dismissed meanwhile
            os.write(self._popen.stdin.fileno(), line.encode())

    def dismiss(self) -> None:
        """Ends it; it does nothing any more."""
        self._popen.kill()  # before its pipe closes: an end of file would make it kill
        self._close()

    def strike(self) -> None:
        """Lets it do its work now; returns when it has, or when it is stuck at a process that is."""
        self._close()

    def _close(self) -> None:
        assert self._popen.stdin and self._popen.stdout
        _pipes.discard(self._popen.stdin.fileno())
        self._popen.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(_STRIKE_S)
        self._popen.stdout.close()
        processes.helpers.discard(self.pid)
