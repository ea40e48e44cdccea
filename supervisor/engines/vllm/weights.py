"""Which files a load reads: those of a model directory, or of a model hub's cache."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["cached", "weight_files"]


def weight_files(model: Path) -> tuple[Path, ...]:
    """Return the weights of a model directory: its safetensors, or what PyTorch saved where there are none."""
    if not model.is_dir():
        return (model,) if model.is_file() else ()
    return tuple(sorted(model.glob("*.safetensors")) or sorted(model.glob("*.bin")))


def cached(model: str, env: Mapping[str, str]) -> Path | None:
    """Return the directory in the hub's cache that holds a model's main revision; None: it is not there, or not yet.

    Args:
        model: an id, such as `Qwen/Qwen3-8B`.
        env: the child's variables, which say where the cache is (huggingface_hub, constants.py).
    """
    home = env.get("HF_HOME") or f"{env.get('XDG_CACHE_HOME') or env.get('HOME', '') + '/.cache'}/huggingface"
    repository = Path(env.get("HF_HUB_CACHE") or f"{home}/hub") / f"models--{model.replace('/', '--')}"
    try:
        revision = (repository / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return repository / "snapshots" / revision
