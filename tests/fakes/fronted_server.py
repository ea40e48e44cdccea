#!/usr/bin/env python3
"""A stand-in for a server of two processes: a front that answers HTTP, and a worker without which it is worth nothing.

As vLLM 0.32.0 does (seen): once its worker has died, the front answers /health with 503, and exits with code 0 a while
later; its own last words are noise. It listens once the worker runs.

  --port PORT        where the front listens
  --worker-file FILE gets the worker's process number once it runs
  --title NAME       the worker's name, as prctl(2) sets it; its command line says `--rank 0`
  --never-ready      the front answers 503 for ever
  --linger-s S       from the worker's end to that of the front (60)
  --helpers          the worker forks a process that ends at once, which has its command line and its name
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time

TYPE_CHECKING = False  # importing typing would cost more time than all the rest
if TYPE_CHECKING:
    from typing import NoReturn


def option(name: str, default: str = "") -> str:
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def write(name: str, text: str) -> None:
    with open(name + ".new", "w") as file:  # noqa: PTH123
        file.write(text)
    os.replace(name + ".new", name)  # noqa: PTH105  whoever waits for the file never sees it empty


def work() -> NoReturn:
    if title := option("--title"):
        import ctypes

        ctypes.CDLL(None).prctl(15, title.encode(), 0, 0, 0)  # PR_SET_NAME
    if "--helpers" in sys.argv and not (helper := os.fork()):
        time.sleep(1.0)  # as long as two looks take
        os._exit(0)
    elif "--helpers" in sys.argv:
        write(option("--worker-file"), f"{os.getpid()}\n")
        os.waitpid(helper, 0)
        write(option("--worker-file") + ".helper", "ended\n")
    write(option("--worker-file"), f"{os.getpid()}\n")
    while os.getppid() == int(option("--front")):  # no orphan of a front that was killed
        time.sleep(0.05)
    os._exit(0)


def serve(port: int, lost: threading.Event) -> NoReturn:
    with socket.create_server(("127.0.0.1", port)) as listener:
        while True:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(65536)
                up = not lost.is_set() and "--never-ready" not in sys.argv
                status = b"200 OK" if up else b"503 Service Unavailable"
                connection.sendall(b"HTTP/1.1 %b\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}" % status)


def main() -> NoReturn:
    if "--front" in sys.argv:
        work()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(option("--worker-file"))  # noqa: PTH108  an earlier life's
    argv = [sys.executable, "-I", "-S", *sys.argv, "--rank", "0", "--front", str(os.getpid())]
    with subprocess.Popen(argv) as worker:
        lost = threading.Event()
        while not os.path.exists(option("--worker-file")):  # noqa: PTH110
            time.sleep(0.01)
        threading.Thread(target=serve, args=(int(option("--port")), lost), daemon=True).start()
        worker.wait()
        lost.set()
        sys.stdout.write('{"level": "error", "msg": "the worker is dead"}\n')
        sys.stdout.writelines(f"nanobind: leaked {i} instances\n" for i in range(40))
        sys.stdout.flush()
        time.sleep(float(option("--linger-s", "60")))
        os._exit(0)


if __name__ == "__main__":
    main()
