"""mirakuru's own wait for a server, in the peers' environment: jobs and results as JSON lines.

{"argv", "port"} starts the server and answers when mirakuru calls it up; {} stops it.
"""

import json
import subprocess
import sys
import time
from typing import Any

from mirakuru import HTTPExecutor  # type: ignore[import-not-found,unused-ignore]

running: list[Any] = []
for line in sys.stdin:
    job = json.loads(line)
    result: dict[str, float] = {}
    if job:
        server = HTTPExecutor(
            job["argv"], url=f"http://127.0.0.1:{job['port']}/health", timeout=120, stderr=subprocess.DEVNULL
        )
        result["began"] = time.monotonic()
        server.start()
        result["at"] = time.monotonic()
        running.append(server)
    else:
        running.pop().stop()
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()
