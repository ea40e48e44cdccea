"""Gemma 4 26B A4B with vision and thinking on one L40S, snapshotted warm: `modal deploy modal_entry/gemma.py`.

The pipeline, in its order: `modal run modal_entry/gemma.py::NAME` for build_llama_server, download_model, verify_model;
deploy; then smoke. Later: build_llama_server with another LLAMA_CPP_TAG, promote, deploy, or rollback, deploy.
"""

import os
import sys
from pathlib import Path

import modal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # Modal imports this file from wherever it was called

from modal_entry.pipeline import functions as pipeline
from modal_entry.serving import server as serving

MODEL = serving.Model(
    name="gemma-4-26b-a4b",
    repo="unsloth/gemma-4-26B-A4B-it-GGUF",
    revision="main",
    weights="gemma-4-26B-A4B-it-UD-Q4_K_XL.gguf",  # 17.1 GB
    mmproj="mmproj-F32.gguf",  # about 2 GB
    llama_cpp_tag=os.environ.get("LLAMA_CPP_TAG", "b9940"),
    gpu="L40S",  # 48 GB, of which about 25 GB are used
    ctx_size=65_536,
    slots=4,
    cache_type_k="q8_0",
    cache_type_v="q8_0",
    template=None,  # the GGUF carries it
    warmups=("text", "thinking", "image"),
    api_key_secret="gemma4-api-key",
    hf_secret="huggingface-secret",
    min_containers=0,
    max_containers=3,
    scaledown_window_s=900,
)

app = modal.App("gemma4")


@app.server(**serving.server(MODEL))
class Gemma4(serving.Server):
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
    pipeline.smoke(MODEL, url or pipeline.url_of(app, "Gemma4"), idle_then_wake_s=idle_then_wake)
