"""The pipeline: it is loaded and asked for images, both in the worker's thread."""

from __future__ import annotations

import importlib
import inspect
import io
import random
import re
import sys
import threading
from collections.abc import Callable
from typing import Any, Final

from .options import Options
from .order import Order, Refusal

__all__ = ["Abandoned", "Broken", "OutOfMemory", "Pipeline", "is_out_of_memory"]

_OUT_OF_MEMORY: Final = re.compile(r"out of memory|can't allocate memory|cannot allocate memory", re.IGNORECASE)
# After one of these every later call fails as well: the state of the device is lost with the process alone.
_LOST_DEVICE: Final = re.compile(r"(?:CUDA|HIP) error|device-side assert|CUBLAS_STATUS|CUDNN_STATUS_EXEC")


class Abandoned(Exception):
    """Nobody waits for the image any more."""


class OutOfMemory(Exception):
    """An image did not fit into memory; smaller ones may."""


class Broken(Exception):
    """The device failed: this process will never draw again."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an exception says that memory ran out."""
    return isinstance(error, MemoryError) or bool(_OUT_OF_MEMORY.search(f"{type(error).__name__}: {error}"))


class Pipeline:
    """A text-to-image pipeline. All methods run in one thread.

    Args:
        options: which one, and how it is loaded and called.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._pipe: Any = None
        self._takes: frozenset[str] = frozenset()
        self.device = options.device

    def load(self, enter: Callable[[str], None]) -> None:
        """Import the library, read the weights, and move them to the device.

        Args:
            enter: called with the name of each stage as it begins.
        """
        options = self._options
        enter("imports")
        kind = self._class()
        more = dict(options.load)
        if options.dtype != "auto":
            more[_dtype_word()] = getattr(importlib.import_module("torch"), options.dtype)
        self.device = self._device()
        if self.device == "cpu" and "disable_mmap" in (kind.from_pretrained.__doc__ or ""):
            more.setdefault("disable_mmap", True)
        enter("weights")
        self._pipe = kind.from_pretrained(str(options.model), **more)
        enter("device")
        self._pipe.to(self.device)
        if self.device == "cpu":
            self._own()
        quiet = getattr(self._pipe, "set_progress_bar_config", None)
        if quiet is not None:
            quiet(disable=True)  # a bar redraws its line, and a log keeps each
        self._takes = frozenset(inspect.signature(self._pipe.__call__).parameters)

    def draw(self, order: Order, number: int, gone: threading.Event, on_step: Callable[[int], None]) -> bytes:
        """Draw image number `number` of an order.

        Args:
            order: what to draw.
            number: from 0; the seed is the order's plus this.
            gone: once it is set, the drawing ends with the step that runs.
            on_step: called after each step with its number, from 1.

        Returns:
            The image as PNG.

        Raises:
            Abandoned: `gone` was set.
            Refusal: the pipeline does not take this (422).
            OutOfMemory, Broken: see there.
        """
        if gone.is_set():
            raise Abandoned

        def stepped(_pipe: object, step: int, _time: object, values: dict[str, Any]) -> dict[str, Any]:
            on_step(step + 1)
            if gone.is_set():
                raise Abandoned
            return values

        width, height = order.size
        call: dict[str, Any] = {"prompt": order.prompt, "width": width, "height": height, **self._options.call}
        call["generator"] = _generator(order.seed + number)
        for field, name, value in (
            ("steps", "num_inference_steps", order.steps),
            ("guidance", "guidance_scale", order.guidance),
        ):
            if value is not None:
                if name not in self._takes:
                    raise Refusal(422, f"the pipeline knows no {field}", param=field)
                call[name] = value
        if "callback_on_step_end" in self._takes:
            call["callback_on_step_end"] = stepped
        try:
            picture = self._pipe(**call).images[0]
            out = io.BytesIO()
            picture.save(out, format="PNG")
        except ValueError as error:
            raise Refusal(422, f"the pipeline refuses this: {error}") from error
        except Exception as error:
            if is_out_of_memory(error):
                raise OutOfMemory(f"{type(error).__name__}: {error}") from error
            if type(error).__name__ == "AcceleratorError" or _LOST_DEVICE.search(str(error)):
                raise Broken(f"{type(error).__name__}: {error}") from error
            raise
        return out.getvalue()

    def free(self) -> None:
        """Give back the memory that an image which failed has left in the allocator's cache."""
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _own(self) -> None:
        """Copy weights out of the files that transformers maps them from: a snapshot would not hold them.

        On the way to another device they are copied anyway.
        """
        for part in getattr(self._pipe, "components", {}).values():
            if hasattr(part, "parameters") and hasattr(part, "buffers"):
                for tensor in (*part.parameters(), *part.buffers()):
                    tensor.data = tensor.data.clone()

    def _class(self) -> Any:
        module, _, name = self._options.pipeline.rpartition(":")
        try:
            return getattr(importlib.import_module(module or "diffusers"), name)
        except AttributeError as error:
            raise ImportError(f"{module or 'diffusers'} has no class {name}") from error

    def _device(self) -> str:
        if self._options.device != "auto":
            return self._options.device
        torch = sys.modules.get("torch")
        return "cuda" if torch is not None and torch.cuda.is_available() else "cpu"


def _dtype_word() -> str:
    """What `from_pretrained` calls the type of the weights: renamed in diffusers, which warns of the old word."""
    utils = sys.modules.get("diffusers.utils.deprecation_utils")
    return "dtype" if hasattr(utils, "_TORCH_DTYPE_DEPRECATION_MESSAGE") else "torch_dtype"


def _generator(seed: int) -> Any:
    """Return a seeded source of noise: torch's on the CPU, which gives the same on every device.

    A pipeline that does without torch gets a `random.Random`.
    """
    torch = sys.modules.get("torch")
    return random.Random(seed) if torch is None else torch.Generator("cpu").manual_seed(seed)  # noqa: S311
