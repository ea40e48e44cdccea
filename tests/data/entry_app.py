"""`serving` unchanged, on paths and a port that a test chooses; the binary is whatever the build folder holds."""

from __future__ import annotations

import os
from pathlib import Path

import modal

from modal_entry.pipeline import functions as pipeline
from modal_entry.serving import server as serving

serving.PORT = int(os.environ.get("ENTRY_PORT", "8000"))  # type: ignore[misc]
serving.MODELS = Path(os.environ.get("ENTRY_MODELS", "/models"))  # type: ignore[misc]
serving.BUILDS = Path(os.environ.get("ENTRY_BUILDS", "/llama-build"))  # type: ignore[misc]

MODEL = serving.Model(
    name="gemma-3-270m",
    repo="local/model",
    weights="model.gguf",
    llama_cpp_tag="b1",
    gpu="L4",
    ctx_size=2048,
    slots=2,
    warmups=("text",),
    api_key_secret="entry-key",
    start_s=60,
    grace_s=5,
)

app = modal.App("entry")


@app.server(**serving.server(MODEL))
class Entry(serving.Server):
    """The class of an entry, as `gemma` has it."""

    model = MODEL


@app.function(**serving.inspector(MODEL))
def verify_model() -> None:
    """As in an entry."""
    pipeline.verify_model(MODEL)


@app.function(**serving.inspector(MODEL))
def promote(tag: str) -> None:
    """As in an entry."""
    pipeline.promote(tag)


@app.function(**serving.inspector(MODEL))
def rollback() -> None:
    """As in an entry."""
    pipeline.rollback()


@app.local_entrypoint()
def smoke(url: str) -> None:
    """As in an entry."""
    pipeline.smoke(MODEL, url, idle_then_wake_s=0)
