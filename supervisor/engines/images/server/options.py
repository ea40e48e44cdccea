"""The command line of the image server."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

__all__ = ["KEY_VARIABLE", "MULTIPLE_PX", "Options", "parse", "parse_size"]

KEY_VARIABLE: Final = "IMAGES_API_KEY"
MULTIPLE_PX: Final = 16  # a latent of 8 x 8 pixels, in patches of 2 x 2: what FLUX and its like can draw

Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the server was asked to do; see `--help` for each."""

    model: Path
    pipeline: str
    name: str
    host: str
    port: int
    key: str | None
    dtype: str
    device: str
    steps: int | None
    guidance: float | None
    size: Size
    max_side: int
    max_steps: int
    max_images: int
    max_queue: int
    grace_s: float
    load: Mapping[str, Any]
    call: Mapping[str, Any]


def parse_size(text: str) -> Size | None:
    """Return (width, height) of `512x768`; None when the text is no size."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    return (int(match[1]), int(match[2])) if match else None


def parse(argv: Sequence[str] | None = None, env: Mapping[str, str] = os.environ) -> Options:
    """Read the command line, and the key from the environment. Exits 2 with words when it is wrong."""
    parser = argparse.ArgumentParser(
        prog="server",
        description="Serve a text-to-image pipeline of diffusers over OpenAI's POST /v1/images/generations. "
        f"The key that clients must send comes from the variable {KEY_VARIABLE}.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="folder of the pipeline, with its model_index.json")
    add("--pipeline", default="Flux2KleinPipeline", metavar="CLASS", help="class of diffusers, or module:Class")
    add("--served-model-name", metavar="NAME", help="name of the model for clients (default: the folder's)")
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=_whole(0), default=8188, help="port to listen on, 0 for any")
    add("--dtype", default="bfloat16", help="torch's name of the weights' type, or auto (as they are stored)")
    add("--device", default="auto", help="where it runs, such as cuda or cpu; auto: cuda where there is one")
    add("--steps", type=_whole(1), metavar="N", help="steps of a request that names none (default: the pipeline's)")
    add("--guidance", type=float, metavar="X", help="guidance of a request that names none (default: the pipeline's)")
    add("--size", type=_size, default=(1024, 1024), metavar="WxH", help="size of a request that names none")
    add("--max-side", type=_whole(MULTIPLE_PX), default=2048, metavar="PX", help="longest side of an image")
    add("--max-steps", type=_whole(1), default=100, metavar="N", help="most steps of an image")
    add("--max-images", type=_whole(1), default=4, metavar="N", help="most images of a request")
    add("--max-queue", type=_whole(0), default=8, metavar="N", help="requests that may wait; more are refused (503)")
    add("--grace-s", type=_seconds, default=25.0, metavar="S", help="for the running image, after SIGTERM")
    add("--load", type=_object, default={}, metavar="JSON", help="more arguments of from_pretrained")
    add("--call", type=_object, default={}, metavar="JSON", help="more arguments of each call of the pipeline")
    given = parser.parse_args(argv)
    if given.steps is not None and given.steps > given.max_steps:
        parser.error(f"--steps {given.steps} is more than --max-steps {given.max_steps}")
    if max(given.size) > given.max_side:
        parser.error(f"--size {given.size[0]}x{given.size[1]} is more than --max-side {given.max_side}")
    return Options(
        name=given.served_model_name or given.model.resolve().name,
        key=env.get(KEY_VARIABLE) or None,
        **{name: value for name, value in vars(given).items() if name != "served_model_name"},
    )


def _whole(low: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if not re.fullmatch(r"\d{1,9}", text) or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number, {low} or more")
        return int(text)

    return whole


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds, more than 0 and at most 3600")
    return value


def _size(text: str) -> Size:
    size = parse_size(text)
    if size is None or any(side % MULTIPLE_PX for side in size):
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 1024x1024, in multiples of {MULTIPLE_PX}")
    return size


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not JSON ({error})") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("not a JSON object")
    return value
