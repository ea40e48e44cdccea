"""What a GGUF file says about itself, and whether all of it is there; reads the header, never the weights.

The header is: magic `GGUF`, version (u32), number of tensors and of key-values (u64 each), the key-values, then one
entry a tensor (name, shape, type, offset). Behind it, padded to `general.alignment`, lie the tensors without a gap.
Layout and limits are those of llama.cpp b11434 (`ggml/src/gguf.cpp`). Nothing is believed: counts and lengths have
limits, what is not needed is skipped unread, and memory stays below 2 MiB whatever the file claims.
"""

from __future__ import annotations

import math
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hooks.artifacts.ggml import FILE_TYPES, GUESSED, TENSOR_TYPES
from hooks.artifacts.gguf_window import GgufError, Window

__all__ = ["GgufError", "GgufInfo", "read"]

Value = int | float | str

MAX_KEY_VALUES: Final = 1 << 16
MAX_TENSORS: Final = 1 << 17
MAX_KEY_BYTES: Final = (1 << 16) - 1  # by the format's definition
MAX_NAME_BYTES: Final = 63  # GGML_MAX_NAME without its NUL
MAX_DIMS: Final = 4  # GGML_MAX_DIMS
MAX_TEXT_BYTES: Final = 4096  # of a value that is kept

_SCALARS: Final = {kind: struct.Struct("<" + code) for kind, code in zip(range(8), "BbHhIifB", strict=True)}
_SCALARS.update({kind: struct.Struct("<" + code) for kind, code in zip((10, 11, 12), "Qqd", strict=True)})
_STRING: Final = 8
_ARRAY: Final = 9
_GENERAL: Final = tuple(f"general.{key}" for key in ("architecture", "name", "file_type", "alignment"))
_KEPT: Final = (*_GENERAL, "split.no", "split.count")
_CONTEXT: Final = ".context_length"
_TEMPLATE: Final = "tokenizer.chat_template"


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufInfo:
    """The header of a GGUF file.

    Attributes:
        path: of the file.
        file_bytes: its size.
        needed_bytes: where its last tensor ends; None when `unknown_types` is not empty, because nobody can tell then.
        version: of the format, 2 or 3.
        architecture: such as `gemma3`; `clip` for vision towers; None when the file does not say.
        name: the model's, if the file says one.
        file_type: `general.file_type`, if the file says one.
        quantisation: its name, such as `Q4_K_M`; without a file type, the tensor type that holds the most elements.
        context_length: tokens that the model was made for; None when the file does not say.
        split_no, split_count: which shard (from 0) of how many; 0 of 1 for a whole model.
        alignment: of every tensor, bytes.
        data_offset: where the tensors begin.
        tensors: how many there are; 0 in a file that holds a vocabulary only.
        tensor_types: type name -> number of elements.
        unknown_types: type numbers that this reader does not know.
        has_chat_template: whether the file brings a template of its own.
    """

    path: Path
    file_bytes: int
    needed_bytes: int | None
    version: int
    architecture: str | None
    name: str | None
    file_type: int | None
    quantisation: str
    context_length: int | None
    split_no: int
    split_count: int
    alignment: int
    data_offset: int
    tensors: int
    tensor_types: Mapping[str, int]
    unknown_types: tuple[int, ...]
    has_chat_template: bool


def read(path: Path | str) -> GgufInfo:
    """Reads the header and compares the file's size with it; blocks on the disk for the header's bytes.

    Raises:
        GgufError: the file is missing, not a GGUF of version 2 or 3, truncated anywhere, or claims what cannot be.
    """
    path = Path(path)
    try:
        # A FIFO or a device would block the open, or never end.
        if not stat.S_ISREG(path.stat().st_mode):
            raise GgufError(path, "unreadable", "not a regular file")
        with path.open("rb", buffering=0) as file:
            return _info(path, Window(path, file))
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL
        raise GgufError(path, "unreadable", getattr(error, "strerror", None) or str(error)) from error


def _info(path: Path, window: Window) -> GgufInfo:
    version, tensors, pairs = _preamble(window)
    values = _key_values(window, pairs)
    alignment = values.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        window.fail("implausible", f"general.alignment is {alignment!r}, not a power of two")
    end, types, unknown = _tensor_table(window, tensors, alignment)
    data_offset = _pad(window.position, alignment)
    # A file without tensors may end right behind its header, unpadded.
    needed = data_offset + end if end else window.position
    if needed > window.size:
        known = " for the tensors of known types" if unknown else ""
        window.fail("truncated", f"the tensor table needs {needed} bytes{known}, the file has {window.size}")
    architecture, file_type = _text(values.get("general.architecture")), _count(values.get("general.file_type"))
    return GgufInfo(
        path=path,
        file_bytes=window.size,
        needed_bytes=None if unknown else needed,
        version=version,
        architecture=architecture,
        name=_text(values.get("general.name")),
        file_type=file_type,
        quantisation=_quantisation(file_type, types),
        context_length=_count(values.get(f"{architecture}{_CONTEXT}")),
        split_no=_count(values.get("split.no")) or 0,
        split_count=_count(values.get("split.count")) or 1,
        alignment=alignment,
        data_offset=data_offset,
        tensors=tensors,
        tensor_types=types,
        unknown_types=unknown,
        has_chat_template=_TEMPLATE in values,
    )


def _preamble(window: Window) -> tuple[int, int, int]:
    """Version, number of tensors, number of key-values."""
    first = window.peek(32)
    if first[:4] != b"GGUF":
        window.fail("not a GGUF", f"it begins with {first!r}{_guess(first)}" if first else "it is empty")
    window.skip(4)
    window.what = "the version and the counts"
    version = window.u32()
    if version not in (2, 3):
        big = version and not version & 0xFFFF
        window.fail("unsupported", "it is big-endian" if big else f"version {version}; versions 2 and 3 are known")
    tensors, pairs = window.u64(), window.u64()
    for count, limit, things in (tensors, MAX_TENSORS, "tensors"), (pairs, MAX_KEY_VALUES, "key-values"):
        if count > limit:
            window.fail("implausible", f"the header claims {count} {things}; at most {limit} are believed")
    return version, tensors, pairs


def _key_values(window: Window, pairs: int) -> dict[str, Value]:
    """The values that `GgufInfo` needs; all others are skipped."""
    values: dict[str, Value] = {}
    for index in range(pairs):
        window.what = f"key-value {index + 1} of {pairs}"
        key = window.name(MAX_KEY_BYTES)
        window.what = f"the value of {key[:80]!r}"
        kind = window.u32()
        # One context length is a model's; a thousand would be somebody's attempt to fill memory.
        kept = key in _KEPT or (key.endswith(_CONTEXT) and len(key) < 256 and len(values) < 64)
        if kind in _SCALARS:
            value: Value = _SCALARS[kind].unpack(window.take(_SCALARS[kind].size))[0]
        elif kind == _STRING:
            kept |= key == _TEMPLATE
            value = window.text(MAX_TEXT_BYTES if kept else 0)
        elif kind == _ARRAY:
            _skip_array(window)
            continue
        else:
            window.fail("implausible", f"{window.what} has the unknown type {kind}")
        if kept:
            values[key] = value
    return values


def _skip_array(window: Window) -> None:
    kind, count = window.u32(), window.u64()
    if kind in _SCALARS:
        window.skip(count * _SCALARS[kind].size)
    elif kind == _STRING:
        window.skip_strings(count)
    else:
        window.fail("implausible", f"{window.what} is an array of the unknown type {kind}")


def _tensor_table(window: Window, tensors: int, alignment: int) -> tuple[int, dict[str, int], tuple[int, ...]]:
    """Where the last tensor of a known type ends, counted from the data's begin; elements by type; unknown types."""
    end = 0
    types: dict[str, int] = {}
    unknown: set[int] = set()
    for index in range(tensors):
        window.what = f"tensor {index + 1} of {tensors}"
        name = window.name(MAX_NAME_BYTES)
        dims = window.u32()
        if dims > MAX_DIMS:
            window.fail("implausible", f"tensor {name!r} has {dims} dimensions; at most {MAX_DIMS} are possible")
        shape = [window.u64() for _ in range(dims)]
        kind, offset = window.u32(), window.u64()
        elements = math.prod(shape)
        if elements >= 1 << 63:
            window.fail("implausible", f"tensor {name!r} has the shape {shape}")
        expected = _pad(end, alignment)
        if offset % alignment or (offset != expected and not unknown):
            where = f"no multiple of {alignment}" if unknown else f"not at {expected}, where the one before it ends"
            window.fail("implausible", f"tensor {name!r} begins at {offset}, {where}")
        if kind not in TENSOR_TYPES:
            if len(unknown) == 64:
                window.fail("implausible", f"tensor {name!r} has the type {kind}; 64 other types are unknown as well")
            unknown.add(kind)
            end = max(end, offset)
            continue
        type_name, block, block_bytes = TENSOR_TYPES[kind]
        if (shape[0] if shape else 1) % block:
            window.fail("implausible", f"tensor {name!r} is {shape}, but {type_name} comes in blocks of {block}")
        types[type_name] = types.get(type_name, 0) + elements
        end = max(end, offset + elements // block * block_bytes)
    return end, types, tuple(sorted(unknown))


def _pad(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def _text(value: Value | None) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: Value | None) -> int | None:
    return value if isinstance(value, int) else None


def _quantisation(file_type: int | None, types: Mapping[str, int]) -> str:
    if file_type is not None:
        number = file_type & ~GUESSED
        return FILE_TYPES.get(number, f"file type {number}")
    return max(types, key=types.__getitem__) if types else "unknown"


def _guess(first: bytes) -> str:
    """What a file that is no GGUF may be: a phrase in brackets, or empty."""
    if first.startswith(b"version https://git-lfs"):
        return " (a pointer of git-lfs, not the file that it stands for)"
    if first.lstrip()[:1] in (b"<", b"{"):
        return " (a page or an error message, saved under the model's name)"
    return "" if first.strip(b"\0") else " (zeros: space was set aside, and nothing written)"
