"""A child that writes to stdout, and measures what its own writes took.

writer.py KIND SECONDS MAX_BYTES RATE PORT STATS: KIND is lines80, lines4k (one write a line), blocks80 (80-byte lines,
64 KiB a write) or blob (no line breaks); RATE is lines a second, 0 for as fast as possible; with a PORT it answers
health checks there first, and writes once it was asked. STATS is written at the end.
"""

import json
import os
import socket
import sys
import threading
import time

kind, seconds, max_bytes, rate, port = sys.argv[1], float(sys.argv[2]), *(int(arg) for arg in sys.argv[3:6])
stats = sys.argv[6]
LINE = b"%-79s\n" % b"srv  update_slots: all slots are idle"
DATA = {"lines80": LINE, "lines4k": b"%-4095s\n" % b"x", "blocks80": LINE * 819, "blob": b"x" * 65536}[kind]
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


def serve(listener: socket.socket, asked: threading.Event) -> None:
    """Answers everything, for ever."""
    while True:
        client, _ = listener.accept()
        with client:
            client.recv(65536)
            client.sendall(ANSWER)
        asked.set()


if port:
    listener = socket.create_server(("127.0.0.1", port))
    asked = threading.Event()
    threading.Thread(target=serve, args=(listener, asked), daemon=True).start()
    asked.wait()
    time.sleep(0.1)  # the supervisor goes from "up" to "ready"
written, longest_s, now = 0, 0.0, time.monotonic()
began = now
while now - began < seconds and written < max_bytes:
    if rate and written >= (now - began) * rate * len(DATA):
        time.sleep(0.0002)
        now = time.monotonic()
        continue
    before = time.monotonic()
    written += os.write(1, DATA)
    now = time.monotonic()
    longest_s = max(longest_s, now - before)
result = {"bytes": written, "took_s": now - began, "longest_s": longest_s, "lines": written // len(DATA)}
result["lines"] *= DATA.count(b"\n")
with open(stats + ".part", "w") as file:  # noqa: PTH123  pathlib takes longer to import than all the rest
    json.dump(result, file)
os.rename(stats + ".part", stats)  # noqa: PTH104
