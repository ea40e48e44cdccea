"""A Step that has a picture drawn, for engines that make pictures of words."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hooks.http.ask import ask
from hooks.http.chat import model_of
from hooks.http.dialect import route
from hooks.http.images import pictures
from supervisor.errors import require

if TYPE_CHECKING:
    from supervisor.child import Child

__all__ = ["Draw"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """A picture of words: one must come, whole and as large as asked for. What is on it is not judged.

    Attributes:
        prompt: what to draw.
        size: width x height in pixels; None: the server's own default, which is what a snapshot should hold warm.
        name, deadline_s: see `Step`.
    """

    prompt: str = "a lighthouse at dawn, watercolour"
    size: str | None = None
    name: str = "draw"
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        require(bool(self.prompt.strip()), f"{self.name}.prompt", self.prompt, "not blank")
        sized = self.size is None or re.fullmatch(r"[1-9]\d*x[1-9]\d*", self.size) is not None
        require(sized, f"{self.name}.size", self.size, "such as 512x512, or None")

    async def __call__(self, child: Child) -> None:
        """Ask once and verify.

        Raises:
            BadAnswer: no such picture came.
            Unsupported: the engine has no route for images.
        """
        path = route(child, "images_path")
        body = {"model": model_of(child), "prompt": self.prompt, "n": 1, "response_format": "b64_json"}
        body |= {"size": self.size} if self.size else {}
        pictures(await ask(child, path, body, timeout_s=self.deadline_s), body)
