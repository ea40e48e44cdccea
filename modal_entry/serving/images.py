"""The images, and the options of `@app.server` and `@app.function` for a deployment."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import modal

from modal_entry.serving import deployment as sheets
from modal_entry.serving import pinned, volumes
from modal_entry.serving.volumes import builds_volume, models_volume, volumes_environment

if TYPE_CHECKING:
    from pathlib import Path

    from modal_entry.serving.deployment import Deployment

__all__ = ["builder", "downloader", "inspector", "server"]

# Builder and runtime move together, and with the driver: a snapshot does not survive a change of either.
_CUDA: Final = "12.8.1"
_OS: Final = "ubuntu24.04"
_PYTHON: Final = "3.12"
_SOURCES: Final = ("modal_entry", "hooks", "supervisor")
_SERVING: Final = ("anyio==4.16.0", "httpx==0.28.1", "regex==2026.11.15", "structlog==26.1.0", "tenacity==9.2.1")
_PIPELINE: Final = (*_SERVING, "huggingface-hub[hf_xet]==2.4.0", "rich==15.0.0", "filelock==4.2.11")


def server(deployment: Deployment) -> dict[str, Any]:
    """Options of `@app.server`. Under `modal deploy` the promoted build and the weights are looked up for them."""
    image = _cuda("runtime", "libgomp1").pip_install(*_SERVING)
    return {
        # Last: whatever changes between two deploys of one sheet stands here.
        "image": _with_sources(image.env({"HF_HUB_OFFLINE": "1"}).env(pinned.variables(deployment))),
        "gpu": deployment.gpu,
        "cpu": deployment.cpu,
        "memory": deployment.memory_mib,
        "volumes": {str(volumes.MODELS): models_volume, str(volumes.BUILDS): builds_volume},
        "secrets": [modal.Secret.from_name(deployment.api_key_secret, required_keys=["API_KEY"])],
        "port": sheets.PORT,
        "unauthenticated": deployment.unauthenticated,
        "enable_memory_snapshot": True,
        "experimental_options": {"enable_gpu_snapshot": True},
        "startup_timeout": deployment.startup_timeout_s,
        "exit_grace_period": math.ceil(deployment.drain_s),
        "min_containers": deployment.min_containers,
        "max_containers": deployment.max_containers,
        "scaledown_window": deployment.scaledown_window_s,
        "target_concurrency": deployment.slots,
    }


def builder(deployment: Deployment) -> dict[str, Any]:
    """Options of `@app.function` for the compilation: no GPU is needed, the architecture is named."""
    image = _cuda("devel", "git", "cmake", "ninja-build", "build-essential").pip_install(*_PIPELINE)
    return {
        "image": _with_sources(image.env({"LLAMA_CPP_TAG": deployment.tag}), kinds=(".py", ".c", ".h")),
        "volumes": {str(volumes.BUILDS): builds_volume},
        "cpu": 16.0,
        "memory": 32_768,
        "timeout": 7200,
        "max_containers": 1,  # a lock holds on one host only
    }


def downloader(deployment: Deployment) -> dict[str, Any]:
    """Options of `@app.function` for the download."""
    image = modal.Image.debian_slim(_PYTHON).pip_install(*_PIPELINE).env({"HF_XET_HIGH_PERFORMANCE": "1"})
    secret = modal.Secret.from_name(
        deployment.hf_secret, environment_name=volumes_environment(), required_keys=["HF_TOKEN"]
    )
    return {
        "image": _with_sources(image),
        "volumes": {str(volumes.MODELS): models_volume},
        "secrets": [secret],
        "cpu": 4.0,
        "timeout": 7200,
        "max_containers": 1,
    }


def inspector(deployment: Deployment) -> dict[str, Any]:
    """Options of `@app.function` for what only looks at the volumes, or switches a pointer on them."""
    image = _cuda("runtime", "libgomp1").pip_install(*_PIPELINE)
    return {
        "image": _with_sources(image.env({"LLAMA_CPP_TAG": deployment.tag})),
        "volumes": {str(volumes.MODELS): models_volume, str(volumes.BUILDS): builds_volume},
        "timeout": 3600,
        "max_containers": 1,
    }


def _cuda(flavour: str, *packages: str) -> modal.Image:
    image = modal.Image.from_registry(f"nvidia/cuda:{_CUDA}-{flavour}-{_OS}", add_python=_PYTHON)
    return image.entrypoint([]).apt_install(*packages)  # NVIDIA's entrypoint prints a banner at each start


def _with_sources(image: modal.Image, *, kinds: tuple[str, ...] = (".py",)) -> modal.Image:
    """Our packages in an image, but for the rehearsals: files that end so, by default Python sources alone."""

    def stays_here(path: Path) -> bool:
        return path.suffix not in kinds or path.parts[0] == "rehearsal"

    # Last in the chain: sources are mounted, so that a change of ours rebuilds no image.
    return image.add_local_python_source(*_SOURCES, ignore=stays_here)
