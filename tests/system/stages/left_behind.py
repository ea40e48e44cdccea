"""What a scene has left behind: processes, ports, threads, descriptors."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from conftest import children
from system.faults import TOKEN
from system.stages.scene import Scene

LEFT_S = 10.0  # until what is left counts as left behind
_PR_SET_CHILD_SUBREAPER = 36


def leftovers(scene: Scene, processes: set[int], threads: set[str], descriptors: list[str]) -> list[str]:
    """What is still there of a scene, once it had a moment (a guardian takes one)."""

    def look() -> list[str]:
        for pid in children() - processes:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        return [
            *(f"process {pid}" for pid in sorted((children() - processes) | set(_marked(scene.tmp)))),
            *(f"port {port}" for port in sorted(scene.ports) if not _free(port)),
            *(f"thread {name}" for name in sorted(threads_running() - threads)),
            *(f"descriptor {name}" for name in descriptors_held() if name not in descriptors),
        ]

    ends = time.monotonic() + LEFT_S
    while (left := look()) and time.monotonic() < ends:
        time.sleep(0.01)
    return left


def _marked(tmp: Path) -> Iterator[int]:
    mark = f"{TOKEN}={tmp}\0".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(entry.name) != os.getpid() and mark in (entry / "environ").read_bytes():
                yield int(entry.name)


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that linger are no listener
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OSError:
            return False
    return True


def threads_running() -> set[str]:
    # Trio keeps its idle worker threads for 10 s, for the whole process.
    return {f"{t.name} {t.ident}" for t in threading.enumerate() if not t.name.startswith("Trio thread")}


def descriptors_held() -> list[str]:
    """What this process holds open, with the target, so that a reused number shows."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own
            target = os.readlink(f"/proc/self/fd/{fd}")
            if not target.endswith("/fd"):
                found.append(f"{fd} {target}")
    return found


def adopt_orphans(on: bool) -> None:
    """Whether orphans of our processes become our children, guardians and grandchildren included: then we see them."""
    assert ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0) == 0
