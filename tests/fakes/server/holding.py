"""What the fake server holds besides its port: a grandchild, and what no snapshot can carry."""

# ruff: noqa: PTH105, PTH108, PTH123

from __future__ import annotations

import os
import signal
import threading
import time

from fakes.server.flags import STOP_SIGNALS, refuse
from fakes.server.output import wait_for_file

TYPE_CHECKING = False  # importing typing would cost more time than all the rest
if TYPE_CHECKING:
    from typing import Any

    from fakes.server.flags import Options


def fork_grandchild(pid_file: str) -> None:
    """A process that outlives us and holds our stdout and stderr."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        time.sleep(300)
        os._exit(0)
    if pid_file:
        with open(pid_file + ".new", "w") as file:
            file.write(f"{pid}\n")
        os.replace(pid_file + ".new", pid_file)  # whoever waits for the file never sees it empty


def hold(options: Options) -> list[Any]:
    """Take what no snapshot can carry: it is held as long as the answer is, or until a thread lets go of it."""
    held: list[Any] = []
    for name in options.map:
        import mmap  # here, because almost no start needs it

        with open(name, "rb") as file, open(os.devnull, "rb") as null:
            # Python keeps a descriptor for each mapping, under the lowest free number; an engine has the mapping alone.
            own = os.dup(file.fileno())
            os.close(own)
            held.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            os.dup2(null.fileno(), own)
    for name in options.hold_open:
        held.append(open(name, "rb"))  # noqa: SIM115
        if options.unlink_open:
            os.unlink(name)
    if options.io_uring:
        import ctypes

        # io_uring_setup(2), which has no wrapper in libc: the number is the same on all machines.
        ring = ctypes.CDLL(None, use_errno=True).syscall(425, 4, ctypes.create_string_buffer(256))
        if ring < 0:
            refuse(f"error: io_uring_setup: {os.strerror(ctypes.get_errno())}")
        held.append(os.fdopen(ring, "rb"))

    def let_go() -> None:
        wait_for_file(options.let_go)
        for thing in held:
            thing.close()

    if held and options.let_go:
        threading.Thread(target=let_go, daemon=True).start()
    return held
