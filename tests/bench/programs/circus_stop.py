"""Stops a watcher of circus and says how long that took, in the peers' environment: circus_stop.py ENDPOINT_PORT."""

import sys
import time

from circus.client import CircusClient  # type: ignore[import-not-found,unused-ignore]

client = CircusClient(endpoint=f"tcp://127.0.0.1:{sys.argv[1]}", timeout=30)
began = time.monotonic()
client.send_message("stop", name="child", waiting=True)
print(time.monotonic() - began)  # noqa: T201
