"""Runs `download` in a process of its own, because huggingface-hub reads its environment when it is imported.

Reads a JSON object from standard input: repo, revision, files (fields of Artifact), root, token, file_limit (bytes that
any file may grow to). Writes one with the result, or the error, the waits and the number of commits.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

from hooks.artifacts.inventory import Artifact
from hooks.artifacts.marker import MARKER
from modal_entry.pipeline.download import download
from supervisor.redact import Secret


def main() -> None:
    order = json.load(sys.stdin)
    root = Path(order["root"])
    waits: list[float] = []
    markers: list[bool] = []
    if limit := order.get("file_limit"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    out: dict[str, Any] = {"waits": waits, "markers_at_commit": markers}
    try:
        done = download(
            order["repo"],
            [Artifact(**({"kind": "gguf"} | fields)) for fields in order["files"]],
            order["revision"],
            root,
            token=Secret(order["token"]) if order.get("token") else None,
            on_commit=lambda: markers.append((root / MARKER).is_file()),
            sleep=waits.append,
        )
        out |= {"fetched": done.fetched, "kept": done.kept, "commit": done.marker.commit}
    except Exception as error:  # noqa: BLE001 - the test judges it
        out |= {"error": type(error).__name__, "message": str(error)}
    out["xet"] = os.environ.get("HF_XET_HIGH_PERFORMANCE")
    sys.stdout.write(json.dumps(out))


main()
