"""The dummy Gemma 4 in the shapes of the real one: 26B A4B, 30 layers, 128 experts; 15 GB, written in a minute.

What is not real: values. They are random, layers of one kind share them, and of the experts every eighth is another.
Experts are Q4_0, the rest is as `tiny_gemma4` writes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from unittest import mock

import gguf
import numpy as np
from numpy.typing import NDArray

from fakes import tiny_gemma4
from fakes.gguf_files import header, padded, tensor

Array = NDArray[np.float32]
PERIOD: Final = 6  # layers after which the kinds of attention repeat
OWN_EXPERTS: Final = 16  # with values of their own
REAL: Final = {
    "WIDTH": 2816,
    "LAYERS": 30,
    "HEADS": 16,
    "HEAD_DIM": 512,
    "HEAD_DIM_SWA": 256,
    "FF": 2112,
    "FF_EXPERT": 704,
    "EXPERTS": 128,
    "EXPERTS_USED": 8,
}
VISION: Final[dict[str, Any]] = {"VISION_WIDTH": 1152, "VISION_HEADS": 16, "VISION_FF": 4304}


def build(path: Path, *, seed: int = 0, **shapes: int) -> Path:
    """Writes the model; needs 15 GB of disk and 12 GB of memory. `shapes` override those of the real one."""
    with mock.patch.multiple(tiny_gemma4, **_constants(REAL | shapes), _write=_write):
        return tiny_gemma4.build(path, seed=seed)


def build_mmproj(path: Path, *, width: int = REAL["WIDTH"]) -> Path:
    """Writes a projector for a model of that width: one layer in the shapes of the real one, 50 MB.

    In smaller shapes CUDA has no flash attention for it, and b9940 falls over the pooling that follows on the GPU.
    """
    with mock.patch.multiple(tiny_gemma4, WIDTH=width, **VISION):
        return tiny_gemma4.build_mmproj(path)


def _constants(size: dict[str, int]) -> dict[str, Any]:
    """Those of `tiny_gemma4`, for these sizes."""
    windowed = [(n + 1) % PERIOD != 0 for n in range(size["LAYERS"])]
    sizes = {
        "block_count": size["LAYERS"],
        "embedding_length": size["WIDTH"],
        "feed_forward_length": size["FF"],
        "expert_feed_forward_length": size["FF_EXPERT"],
        "expert_count": size["EXPERTS"],
        "expert_used_count": size["EXPERTS_USED"],
        "attention.head_count": size["HEADS"],
        **{
            f"{key}{kind}": size[dim]
            for key in ("attention.key_length", "attention.value_length", "rope.dimension_count")
            for kind, dim in (("", "HEAD_DIM"), ("_swa", "HEAD_DIM_SWA"))
        },
    }
    kv_heads = [size["HEADS"] // 2 if one else size["HEADS"] // 8 for one in windowed]
    more = {"WINDOWED": windowed, "HEADS_KV": kv_heads, "SIZES": sizes, "FREE": slice(32, size["WIDTH"])}
    return size | more


def _write(path: Path, pairs: list[bytes], tensors: Iterator[tuple[str, Array, int]]) -> Path:
    """As `tiny_gemma4._write`, but from few values: each layer's are those of the first layer of its kind."""
    tensors.close()  # type: ignore[attr-defined]
    layers, experts = tiny_gemma4.LAYERS, tiny_gemma4.EXPERTS
    pattern = [*range(PERIOD), *range(PERIOD, 2 * PERIOD)]  # the last of these is the last layer, with its rules
    with mock.patch.multiple(
        tiny_gemma4,
        LAYERS=len(pattern),
        WINDOWED=tiny_gemma4.WINDOWED[: len(pattern)],
        HEADS_KV=tiny_gemma4.HEADS_KV[: len(pattern)],
        EXPERTS=OWN_EXPERTS,
    ):
        tokens = tiny_gemma4._strings(dict(tiny_gemma4._pairs(header(*pairs)))["tokenizer.ggml.tokens"])
        own = {
            name: _quantised(name, data, kind, experts)
            for name, data, kind in tiny_gemma4._tensors(tokens, np.random.default_rng(0))
            if not name.startswith("blk.") or int(name.split(".")[1]) in (*range(PERIOD), len(pattern) - 1)
        }
    names = [(name, name) for name in own if not name.startswith("blk.")]
    for layer in range(layers):
        source = len(pattern) - 1 if layer == layers - 1 else layer % PERIOD
        names += [(f"blk.{layer}.{name.split('.', 2)[2]}", name) for name in own if name.startswith(f"blk.{source}.")]
    table, offset = [], 0
    for name, source_name in names:
        shape, kind, blob = own[source_name]
        table.append(tensor(name, shape[::-1], kind, offset))
        offset += len(blob) + -len(blob) % 32
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(padded(header(*pairs, tensors=tuple(table)), 0))
        for _, source_name in names:
            file.write(padded(own[source_name][2], 0))
    return path


def _quantised(name: str, data: Array, kind: int, experts: int) -> tuple[tuple[int, ...], int, bytes]:
    """Shape, type and bytes of a tensor, for so many experts."""
    if name.endswith("ffn_gate_inp.weight"):  # the router: no two experts are the same to it
        random = np.random.default_rng(int(name.split(".")[1]))
        data = random.standard_normal((experts, data.shape[1]), dtype=np.float32) / np.float32(data.shape[1] ** 0.5)
    times = experts // OWN_EXPERTS if "_exps." in name else 1
    if times > 1 and data.ndim > 1:
        kind = gguf.GGMLQuantizationType.Q4_0
    blob = gguf.quantize(data, gguf.GGMLQuantizationType(kind)).tobytes()
    return (data.shape[0] * times, *data.shape[1:]), kind, blob * times
