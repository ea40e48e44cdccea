"""On which ports a child's processes listen, for the remark that it chose another one."""

from __future__ import annotations

import subprocess
import sys

from supervisor.linux.listeners import listening_ports

SERVER = r"""
import socket, subprocess, sys
with socket.create_server(("127.0.0.1", 0)) as mine:
    worker = "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); "
    worker += "print(s.getsockname()[1], flush=True); sys.stdin.read()"
    fellow = subprocess.Popen([sys.executable, "-S", "-c", worker, "VLLM::Worker"], stdin=0, stdout=1)
    print(mine.getsockname()[1], flush=True)
    fellow.wait()
"""


def test_ports_of_workers_are_no_servers() -> None:
    """A worker that listens for its fellows does not make the server one that listens on another port."""
    with subprocess.Popen(
        (sys.executable, "-S", "-c", SERVER), stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as child:
        assert child.stdout
        ports = {int(child.stdout.readline()) for _ in range(2)}
        assert set(listening_ports(child.pid)) == ports
        assert len(listening_ports(child.pid, besides=(r"VLLM::Worker$",))) == 1
        assert listening_ports(child.pid, besides=("python",)) == []
        child.communicate()
