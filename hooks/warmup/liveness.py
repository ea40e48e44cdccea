"""Choose the watchdog's inference from the warmups of the command line: only kinds of request that have passed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hooks.http.ask import ask
from hooks.warmup.draw import Draw
from hooks.warmup.request_file import RawJson
from hooks.warmup.steps import Image, Ping, Text, Thinking, Tools

if TYPE_CHECKING:
    from collections.abc import Sequence

    from supervisor.child import Child
    from supervisor.steps import Step

__all__ = ["Repeat", "liveness_after"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeat:
    """The watchdog's inference on a server that was warmed from a file: that request, cut to the fewest tokens.

    The server must answer with a JSON object that is no error; what it wrote is not judged, as with `Ping`.

    Attributes:
        request: the file's.
        deadline_s: see `Step`.
    """

    request: RawJson
    deadline_s: float | None = None

    @property
    def name(self) -> str:
        """For events and errors."""
        return f"repeat {self.request.name}"

    async def __call__(self, child: Child) -> None:
        """Ask once."""
        dialect = child.profile.dialect
        path, body = self.request.request(child)
        # Where the file has no limit, one is added on the routes whose field for it is known.
        added = {
            dialect.chat_path: "max_tokens",
            dialect.completions_path: "max_tokens",
            dialect.responses_path: "max_output_tokens",
        }
        limits = {name for name in dialect.fewest_tokens if name in body} or {added.get(path, "")}
        body |= {name: tokens for name, tokens in dialect.fewest_tokens.items() if name in limits}
        (await ask(child, path, body, timeout_s=self.deadline_s)).data()


def liveness_after(warmups: Sequence[Step]) -> tuple[Step, ...]:
    """The watchdog's inference for a server that has passed these warmups: it asks for nothing that they did not prove.

    `Ping` after a chat or a drawing, a file's request again after a file for another route, nothing after other Steps.
    """
    for step in warmups:
        if isinstance(step, Text | Thinking | Image | Tools | Draw) or (isinstance(step, RawJson) and step.is_chat):
            return (Ping(model=getattr(step, "model", None)),)
    return tuple(Repeat(request=step) for step in warmups if isinstance(step, RawJson))[:1]
