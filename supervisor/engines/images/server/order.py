"""A request for images, read and checked, and the refusals that a client may get."""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass
from typing import Any, Final

from .options import MULTIPLE_PX, Options, Size, parse_size

__all__ = ["Order", "Refusal", "read"]

_PROMPT_CHARS: Final = 32_000  # OpenAI's limit for its image models
_SEEDS: Final = 1 << 63
# Fields of OpenAI's clients that say nothing to a pipeline.
_IGNORED: Final = frozenset({"user", "quality", "style", "moderation", "background"})


class Refusal(Exception):
    """A request that is not served, as OpenAI's clients expect to hear it.

    Attributes:
        status: of HTTP.
        message: what is wrong, and what is allowed.
        param: the field that is wrong.
        code: a word for programs.
        retry_after_s: when to come again.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after_s: int = 0
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, Any]:
        """The body of the answer."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        kind = "unavailable_error" if self.status == 503 else kind
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True, kw_only=True)
class Order:
    """What a client wants: `count` images, image number i (from 0) drawn with the seed `seed + i`."""

    prompt: str
    count: int
    size: Size
    seed: int
    steps: int | None
    guidance: float | None


def read(body: object, options: Options) -> Order:
    """Read the body of a request.

    Raises:
        Refusal: 400, or 404 for another model than ours; it names the field.
    """
    if not isinstance(body, dict):
        raise Refusal(400, "the body is no JSON object")
    fields = {name: value for name, value in body.items() if value is not None and name not in _IGNORED}
    model = fields.pop("model", options.name)
    if model != options.name:
        raise Refusal(404, f"the model {model!r} is not served here", param="model", code="model_not_found")
    for name, only in (("response_format", "b64_json"), ("output_format", "png"), ("stream", False)):
        if fields.pop(name, only) != only:
            raise Refusal(400, f"{name} can only be {only!r} here", param=name)
    prompt = fields.pop("prompt", None)
    if not isinstance(prompt, str) or not prompt.strip() or len(prompt) > _PROMPT_CHARS:
        raise Refusal(
            400, f"prompt must be a text that is not blank, {_PROMPT_CHARS} characters at most", param="prompt"
        )
    if not _encodable(prompt):
        raise Refusal(400, "prompt holds half of a surrogate pair, which is no text", param="prompt")
    count = _whole("n", fields.pop("n", 1), 1, options.max_images)
    seed = _whole("seed", fields.pop("seed", secrets.randbelow(1 << 32)), 0, _SEEDS - options.max_images)
    steps = fields.pop("steps", options.steps)
    order = Order(
        prompt=prompt,
        count=count,
        size=_size(fields.pop("size", "auto"), options),
        seed=seed,
        steps=None if steps is None else _whole("steps", steps, 1, options.max_steps),
        guidance=_guidance(fields.pop("guidance", options.guidance)),
    )
    if fields:
        name = min(map(str, fields))
        known = "prompt, n, size, seed, steps, guidance, model, response_format"
        raise Refusal(400, f"{name!r} is no field of this server: there are {known}", param=name)
    return order


def _whole(name: str, value: object, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise Refusal(400, f"{name} must be a whole number from {low} to {high}", param=name)
    return value


def _guidance(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 100 or math.isnan(value):
        raise Refusal(400, "guidance must be a number from 0 to 100", param="guidance")
    return float(value)


def _size(value: object, options: Options) -> Size:
    if value == "auto":
        return options.size
    size = parse_size(value) if isinstance(value, str) else None
    if size is None or any(side % MULTIPLE_PX or side > options.max_side for side in size):
        sides = f"multiples of {MULTIPLE_PX} up to {options.max_side}"
        raise Refusal(400, f"size must be WIDTHxHEIGHT in {sides}, or auto", param="size")
    return size


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
