"""Gemma 4 26B A4B with vision and thinking on one L40S, snapshotted warm: `modal deploy modal_entry/gemma.py`.

The pipeline, in its order: `modal run modal_entry/gemma.py::NAME` for build_llama_server, download_model, verify_model;
deploy; then smoke. Later: build_llama_server with another LLAMA_CPP_TAG, promote, deploy; or rollback, deploy.
"""

import sys
from pathlib import Path

import modal

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # Modal imports this file from wherever it was called

from modal_entry.pipeline import functions as pipeline
from modal_entry.serving import Deployment, Server, images

SHEET = Deployment(
    app="gemma4",
    name="gemma-4-26b-a4b",
    repo="unsloth/gemma-4-26B-A4B-it-GGUF",
    revision="main",  # as it was at the first download, which prints the commit to write here
    weights="gemma-4-26B-A4B-it-UD-Q4_K_XL.gguf",  # 17.1 GB
    mmproj="mmproj-F32.gguf",  # about 2 GB
    llama_cpp_tag="b9940",  # LLAMA_CPP_TAG wins
    gpu="L40S",  # 48 GB
    gpu_use_gib=25,
    ctx_size=65_536,
    slots=4,
    cache_type_k="q8_0",
    cache_type_v="q8_0",
    warmups=("text", "thinking", "image"),
    api_key_secret="gemma4-api-key",
)

app = modal.App(SHEET.app)


@app.server(**images.server(SHEET))
class Gemma4(Server):
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
    pipeline.smoke(SHEET, url or pipeline.url_of(app, "Gemma4"), idle_then_wake_s=idle_then_wake)
