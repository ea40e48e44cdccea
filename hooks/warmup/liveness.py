"""The watchdog's inference for a server that was warmed from the command line: never more than the warmup proved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hooks.http.answer import ask
from hooks.warmup.request_file import CHAT, RawJson
from hooks.warmup.steps import Image, Ping, Text, Thinking, Tools

if TYPE_CHECKING:
    from collections.abc import Sequence

    from supervisor.child import Child
    from supervisor.steps import Step

__all__ = ["Repeat", "liveness_after"]

# Fields that limit what is generated, with the least that servers accept; and those to add where a file has none.
_FEWEST_TOKENS: Final = {"max_tokens": 1, "max_completion_tokens": 1, "max_output_tokens": 16, "n_predict": 1}
_LIMIT_OF: Final = {
    "/v1/completions": frozenset({"max_tokens"}),
    "/v1/responses": frozenset({"max_output_tokens"}),
}


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
        body = {"model": child.profile.health.model_id or "default", **self.request.body}
        limits = {name for name in _FEWEST_TOKENS if name in body} or _LIMIT_OF.get(self.request.route, frozenset())
        body |= {name: _FEWEST_TOKENS[name] for name in limits}
        (await ask(child, self.request.route, body, timeout_s=self.deadline_s)).data()


def liveness_after(warmups: Sequence[Step]) -> tuple[Step, ...]:
    """The watchdog's inference for a server that has passed these warmups: it asks for nothing that they did not prove.

    `Ping` after a chat, a file's request again after a file for another route, nothing after other Steps.
    """
    for step in warmups:
        if isinstance(step, Text | Thinking | Image | Tools) or (isinstance(step, RawJson) and step.route == CHAT):
            return (Ping(),)
    return tuple(Repeat(request=step) for step in warmups if isinstance(step, RawJson))[:1]
