"""An entry whose port a test chooses; the binary is whatever the build folder holds."""

from __future__ import annotations

import os
import sys

import modal

from modal_entry.pipeline import functions as pipeline
from modal_entry.serving import Deployment, Server, images
from modal_entry.serving import deployment as sheets

sheets.PORT = int(os.environ.get("ENTRY_PORT", "8000"))  # type: ignore[misc]

SHEET = Deployment(
    app="entry",
    name="gemma-3-270m",
    repo="local/model",
    revision="main",
    weights="model.gguf",
    llama_cpp_tag="b1",
    gpu="L4",
    gpu_use_gib=1,
    ctx_size=2048,
    slots=2,
    warmups=("text",),
    api_key_secret="entry-key",
    start_s=60,
    grace_s=5,
)

app = modal.App(SHEET.app)


@app.server(**images.server(SHEET))
class Entry(Server):
    """The class of an entry, as `gemma` has it."""

    deployment = SHEET


@app.function(**images.inspector(SHEET))
def inspect_volumes() -> int:
    """As in an entry."""
    return pipeline.inspect_volumes(SHEET)


@app.function(**images.inspector(SHEET))
def promote(tag: str = "") -> None:
    """As in an entry."""
    pipeline.promote(SHEET, tag)


@app.function(**images.inspector(SHEET))
def rollback() -> None:
    """As in an entry."""
    pipeline.rollback(SHEET)


@app.local_entrypoint()
def verify_model() -> None:
    """As in an entry."""
    sys.exit(inspect_volumes.remote())


@app.local_entrypoint()
def smoke(url: str) -> None:
    """As in an entry."""
    pipeline.smoke(SHEET, url, idle_then_wake_s=0)
