"""An app with everything that the local control plane has to understand."""

from __future__ import annotations

import modal
from modal_base import TinyServer, say

image = (
    modal.Image.from_registry("debian:bookworm-slim", add_python="3.11")
    .apt_install("libgomp1")
    .pip_install("anyio==4.16.0")
    .env({"OFFLINE": "1"})
    .run_commands("echo built")
    .add_local_python_source("modal_base")
)
models = modal.Volume.from_name("tiny-models", create_if_missing=True)
key = modal.Secret.from_name("tiny-key", required_keys=["API_KEY"])
app = modal.App("tiny")


@app.server(
    image=image,
    gpu="L40S",
    port=8123,
    startup_timeout=120,
    exit_grace_period=30,
    unauthenticated=True,
    min_containers=0,
    max_containers=3,
    scaledown_window=900,
    target_concurrency=4,
    volumes={"/models": models},
    secrets=[key],
    enable_memory_snapshot=True,
    experimental_options={"enable_gpu_snapshot": True},
)
class Tiny(TinyServer):
    """The server as deployed."""

    greeting = "hello"


@app.function(image=image, volumes={"/models": models}, timeout=600)
def double(x: int) -> int:
    """A function to run."""
    say(f"doubled: {2 * x}")
    return 2 * x


@app.function(image=image)
def fail() -> None:
    """A function that raises."""
    raise ValueError("told to fail")
