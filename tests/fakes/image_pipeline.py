"""A text-to-image pipeline in plain Python, with the interface of those of diffusers: for the real image server.

What it draws depends on prompt, seed, size, steps and guidance alone. It misbehaves as its folder says: `faults.json`
holds `load_s`, `step_s`, `load_error`, `hang_load`, `hang_at` (a step), `gated` (a file `gate` beside it holds how many
steps of an image may be done), `reread` (the weights anew for each image), and `by_prompt`: a prompt -> the error that
it raises.
"""

from __future__ import annotations

import hashlib
import json
import struct
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

WEIGHTS = "weights.safetensors"


class AcceleratorError(RuntimeError):
    """Named as torch's: the device is lost."""


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


ERRORS: dict[str, Exception] = {
    "refuse": ValueError("`prompt` is not for this pipeline"),
    "memory": OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB. GPU 0 has a total capacity of 7 GiB"),
    "lost": AcceleratorError("CUDA error: an illegal memory access was encountered"),
    "fail": RuntimeError("mat1 and mat2 shapes cannot be multiplied (512x7680 and 12288x4096)"),
}


class Picture:
    """A picture that can be saved, as Pillow's can."""

    def __init__(self, width: int, height: int, pixels: bytes) -> None:
        self.size = (width, height)
        self.pixels = pixels

    def save(self, file: Any, format: str) -> None:  # noqa: A002  # Pillow's name
        assert format == "PNG"
        width, height = self.size
        rows = b"".join(b"\0" + self.pixels[3 * width * y : 3 * width * (y + 1)] for y in range(height))
        chunks = (
            (b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(rows, 1)),
            (b"IEND", b""),
        )
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, data in chunks:
            file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))


class Drawn:
    """What a pipeline returns."""

    def __init__(self, images: list[Picture]) -> None:
        self.images = images


class TinyPipeline:
    """Made by `from_pretrained`."""

    def __init__(self, faults: dict[str, Any], weights: bytes, path: Path) -> None:
        self._faults = faults
        self._weights = weights
        self._path = path

    @classmethod
    def from_pretrained(cls, folder: str, **_: Any) -> TinyPipeline:
        path = Path(folder)
        faults = json.loads((path / "faults.json").read_text()) if (path / "faults.json").exists() else {}
        if error := faults.get("load_error"):
            raise ERRORS[error]
        weights = (path / WEIGHTS).read_bytes()  # OSError when it is missing, as diffusers raises
        if faults.get("hang_load"):
            threading.Event().wait()
        time.sleep(faults.get("load_s", 0.0))
        return cls(faults, weights, path / WEIGHTS)

    def _allowed(self) -> int:
        gate = self._path.with_name("gate")
        return int(gate.read_text() or 0) if gate.exists() else 0

    def to(self, device: str) -> TinyPipeline:
        assert device
        return self

    def __call__(
        self,
        *,
        prompt: str,
        width: int,
        height: int,
        generator: Random,
        num_inference_steps: int = 4,
        guidance_scale: float = 4.0,
        callback_on_step_end: Callable[[Any, int, int, dict[str, Any]], dict[str, Any]] | None = None,
    ) -> Drawn:
        if error := ERRORS.get(self._faults.get("by_prompt", {}).get(prompt, "")):
            raise error
        for step in range(num_inference_steps):
            while self._faults.get("gated") and step >= self._allowed():
                time.sleep(0.005)
            time.sleep(self._faults.get("step_s", 0.0))
            if self._faults.get("hang_at") == step:
                threading.Event().wait()
            if callback_on_step_end:
                callback_on_step_end(self, step, 1000 - step, {})
        words = f"{prompt}|{num_inference_steps}|{guidance_scale}|{generator.getrandbits(64)}".encode()
        if self._faults.get("reread"):
            self._weights = self._path.read_bytes()
        key = hashlib.sha256(words + self._weights).digest()
        pixels = hashlib.shake_256(key).digest(3 * width * height)
        return Drawn([Picture(width, height, pixels)])


class Plain(TinyPipeline):
    """One without guidance and without a callback, as old pipelines are."""

    def __call__(  # type: ignore[override]
        self, *, prompt: str, width: int, height: int, generator: Random, num_inference_steps: int = 4
    ) -> Drawn:
        return super().__call__(
            prompt=prompt, width=width, height=height, generator=generator, num_inference_steps=num_inference_steps
        )
