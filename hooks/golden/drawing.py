"""What an engine drew, and what makes two pictures differ."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio.to_thread

from hooks.http.ask import ask
from hooks.http.chat import model_of
from hooks.http.dialect import route
from hooks.http.images import pictures
from hooks.http.png import Pixels, pixels_of

if TYPE_CHECKING:
    from supervisor.child import Child

__all__ = ["Drawing", "draw"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A picture that was made of words.

    Attributes:
        width, height: in pixels.
        digest: SHA-256 of its pixels; of the file where they cannot be read.
        pixels: None where they cannot be read (JPEG).
    """

    width: int
    height: int
    digest: str
    pixels: Pixels | None = field(default=None, repr=False)

    @property
    def text(self) -> str:
        """For people."""
        of = "" if self.pixels else " of the file"
        return f"{self.width}x{self.height} pixels, sha256{of} {self.digest[:16]}"

    def difference(self, other: Drawing, tolerance: float) -> str | None:
        """How `other` differs from this one: a sentence without its period, or None when it does not.

        Args:
            other: what came later.
            tolerance: how far apart the pixels may be in the mean, 0 to 255.
        """
        if (self.width, self.height, self.digest) == (other.width, other.height, other.digest):
            return None
        if (self.width, self.height) != (other.width, other.height):
            return f"the picture has {other.width}x{other.height} pixels instead of {self.width}x{self.height}"
        if not self.pixels or not other.pixels or self.pixels.channels != other.pixels.channels:
            return "the file of the picture is another one"
        apart = self.pixels.distance(other.pixels)
        if apart <= tolerance:
            return None
        return f"the pixels are {apart:.3g} of 255 apart in the mean, more than the tolerance of {tolerance:g}"


async def draw(child: Child, prompt: str, size: str, seed: int, deadline_s: float | None) -> Drawing:
    """Ask for one picture, as the engine's dialect makes it repeatable.

    Raises:
        BadAnswer: the answer holds no such picture, or one of a single colour, as a model draws whose numbers went
            wrong.
    """
    path = route(child, "images_path")
    body = {"model": model_of(child), "prompt": prompt, "n": 1, "size": size, "response_format": "b64_json"}
    body |= child.profile.dialect.repeatable(seed)
    answer = await ask(child, path, body, timeout_s=deadline_s)
    (picture,) = pictures(answer, body)
    # In a thread: a second of decoding would hold up the log and the health checks.
    pixels = await anyio.to_thread.run_sync(pixels_of, picture.data) if picture.kind == "PNG" else None
    if pixels and pixels.is_flat:
        raise answer.bad("the picture has one colour only: numbers went wrong in the model")
    digest = hashlib.sha256(pixels.samples if pixels else picture.data).hexdigest()
    return Drawing(width=picture.width, height=picture.height, digest=digest, pixels=pixels)
