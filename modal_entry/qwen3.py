"""Qwen3 8B, text only, on one L4, snapshotted warm: `modal deploy modal_entry/qwen3.py`.

The same pipeline as `gemma`, step by step; another GGUF is another file like this one.
"""

import sys
from pathlib import Path

import modal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # Modal imports this file from wherever it was called

from modal_entry.pipeline import functions as pipeline
from modal_entry.serving import Deployment, Server, images

SHEET = Deployment(
    app="qwen3",
    name="qwen3-8b",
    repo="Qwen/Qwen3-8B-GGUF",
    revision="main",  # as it was at the first download, which prints the commit to write here
    weights="Qwen3-8B-Q5_K_M.gguf",  # 5.9 GB
    llama_cpp_tag="b9940",  # LLAMA_CPP_TAG wins
    gpu="L4",  # 24 GB
    gpu_use_gib=10,
    ctx_size=32_768,
    slots=4,
    cache_type_k="q8_0",
    cache_type_v="q8_0",
    warmups=("text", "thinking", "tools"),
    api_key_secret="qwen3-api-key",
)

app = modal.App(SHEET.app)


@app.server(**images.server(SHEET))
class Qwen3(Server):
    deployment = SHEET


@app.function(**images.builder(SHEET))
def build_llama_server() -> None:
    pipeline.build_llama_server(SHEET)


@app.function(**images.downloader(SHEET))
def download_model() -> None:
    pipeline.download_model(SHEET)


@app.function(**images.inspector(SHEET))
def inspect_volumes() -> int:
    return pipeline.inspect_volumes(SHEET)


@app.function(**images.inspector(SHEET))
def promote(tag: str = "") -> None:
    pipeline.promote(SHEET, tag)


@app.function(**images.inspector(SHEET))
def rollback() -> None:
    pipeline.rollback(SHEET)


@app.local_entrypoint()
def verify_model() -> None:
    sys.exit(inspect_volumes.remote())


@app.local_entrypoint()
def smoke(url: str = "", idle_then_wake: float = 0.0) -> None:
    pipeline.smoke(SHEET, url or pipeline.url_of(app, "Qwen3"), idle_then_wake_s=idle_then_wake)
