"""Small GGUF files: good ones through the llama.cpp project's own writer, bad ones byte by byte."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np


def write_gguf(path: Path, *, tensors: int = 3, vocabulary: int = 20, split: tuple[int, int] | None = None) -> Path:
    """A model of architecture gemma3 that is whole, with some F32 and Q8_0 tensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(str(path), "gemma3")
    writer.add_name("Tiny")
    writer.add_context_length(4096)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    writer.add_rope_freq_base(1e6)
    writer.add_bool("general.checked", True)
    writer.add_token_list([f"token {n}" for n in range(vocabulary)])
    writer.add_token_scores([0.5] * vocabulary)
    writer.add_chat_template("{% for message in messages %}{{ message }}{% endfor %}" * 200)
    if split:
        writer.add_uint16("split.no", split[0])
        writer.add_uint16("split.count", split[1])
    values = np.arange(64 * 3, dtype=np.float32).reshape(3, 64)
    for index in range(tensors):
        if index % 2:
            data = gguf.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(f"blk.{index}.weight", data, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(f"blk.{index}.weight", values[:, :61].copy())  # 732 bytes: not a multiple of 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def text(value: str | bytes) -> bytes:
    """A string of the format."""
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def pair(key: str, kind: int, value: bytes) -> bytes:
    """A key-value; `value` is encoded already."""
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    """One entry of the tensor table."""
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def header(*pairs: bytes, tensors: tuple[bytes, ...] = (), version: int = 3, **claims: Any) -> bytes:
    """A header; `claims` may state other counts than there are: tensor_count, pair_count."""
    counts = claims.get("tensor_count", len(tensors)), claims.get("pair_count", len(pairs))
    return b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(tensors)


def padded(data: bytes, more: int, alignment: int = 32) -> bytes:
    """A header with its padding, and so many bytes of tensors."""
    return data + bytes(-len(data) % alignment) + bytes(more)
