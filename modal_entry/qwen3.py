"""Qwen3 8B, text only, on one L4, snapshotted warm: `modal deploy modal_entry/qwen3.py`.

The same pipeline as `gemma`, step by step; another GGUF is another file like this one.
"""

import sys
from pathlib import Path

import modal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # Modal imports this file from wherever it was called

from modal_entry.pipeline import functions as pipeline
from modal_entry.serving import server as serving

MODEL = serving.Model(
    name="qwen3-8b",
    repo="Qwen/Qwen3-8B-GGUF",
    weights="Qwen3-8B-Q5_K_M.gguf",  # 5.9 GB
    llama_cpp_tag="b9940",
    gpu="L4",  # 24 GB
    ctx_size=32_768,
    slots=4,
    cache_type_k="q8_0",
    cache_type_v="q8_0",
    warmups=("text", "thinking", "tools"),
    api_key_secret="qwen3-api-key",
)

app = modal.App("qwen3")


@app.server(**serving.server(MODEL))
class Qwen3(serving.Server):
    model = MODEL


@app.function(**serving.builder(MODEL))
def build_llama_server() -> None:
    pipeline.build_llama_server(MODEL)


@app.function(**serving.downloader(MODEL))
def download_model() -> None:
    pipeline.download_model(MODEL)


@app.function(**serving.inspector(MODEL))
def verify_model() -> None:
    pipeline.verify_model(MODEL)


@app.function(**serving.inspector(MODEL))
def promote(tag: str = MODEL.llama_cpp_tag) -> None:
    pipeline.promote(tag)


@app.function(**serving.inspector(MODEL))
def rollback() -> None:
    pipeline.rollback()


@app.local_entrypoint()
def smoke(url: str = "", idle_then_wake: float = 0.0) -> None:
    pipeline.smoke(MODEL, url or pipeline.url_of(app, "Qwen3"), idle_then_wake_s=idle_then_wake)
