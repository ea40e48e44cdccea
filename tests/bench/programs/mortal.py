"""A server that serves `/health` for a while and dies: it stamps its start and its death on the monotonic clock.

mortal.py PORT STAMP SHORTEST_S LONGEST_S [asked]: its life is counted from the start, or from the first request
"""

import os
import random
import socket
import sys
import threading
import time

port, stamp, shortest_s, longest_s = int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4])
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


def note(word: str) -> None:
    """Appends what happens now."""
    fd = os.open(stamp, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(fd, f"{word} {time.monotonic()} {os.getpid()}\n".encode())
    os.close(fd)


def serve(listener: socket.socket) -> None:
    """Answers everything, for ever."""
    while True:
        client, _ = listener.accept()
        with client:
            client.recv(65536)
            client.sendall(ANSWER)
        asked.set()


note("started")
asked = threading.Event()
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", port))
listener.listen(16)
threading.Thread(target=serve, args=(listener,), daemon=True).start()
if "asked" in sys.argv:
    asked.wait()
time.sleep(random.uniform(shortest_s, longest_s))  # noqa: S311
note("died")
os._exit(1)
