"""A chat completion as a stream of server-sent events: its text, and when each part came."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from hooks.http.answer import Answer, thoughts_of
from hooks.http.ask import ask
from hooks.http.dialect import route

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from hooks.http.endpoint import Exchange, Visit

__all__ = ["Stream", "stream"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """A streamed answer that came whole.

    Attributes:
        text: the content; of a model that only thought, the thoughts.
        tokens: generated, as `usage` says; without it, the events that brought text.
        began: when the last attempt was sent, before connecting; `time.monotonic()`.
        first_token_s: from then to the first text, thoughts included; a new connection is part of it.
        took_s: from then to the last text.
    """

    text: str
    tokens: int
    began: float
    first_token_s: float
    took_s: float

    @property
    def tokens_per_s(self) -> float | None:
        """How fast the tokens after the first one came; None when all came at once."""
        spread_s = self.took_s - self.first_token_s
        return (self.tokens - 1) / spread_s if self.tokens > 1 and spread_s > 0.001 else None


async def stream(visit: Visit, body: Mapping[str, Any], *, timeout_s: float | None = None) -> Stream:
    """Asks for a chat completion as a stream, and reads it to the end.

    Args:
        visit: the server.
        body: of the request; `stream` and `stream_options` are added.
        timeout_s: of each network operation; None: the visit's.

    Raises:
        BadAnswer: no 200, an error, no text, broken events, or the end is missing.
        Unsupported: the engine has no chat route.
    """
    alone = visit.alone()
    path = route(visit, "chat_path")
    wish = {"stream": True, "stream_options": {"include_usage": True}}
    try:
        answer = await ask(alone, path, {**body, **wish}, timeout_s=timeout_s)
    finally:
        visit.exchanges.extend(alone.exchanges)
    return _read(answer, alone.exchanges[-1])


def _read(answer: Answer, exchange: Exchange) -> Stream:
    if answer.status != 200:
        answer.data()  # raises, with the words for it
    content, thoughts, times = "", "", []
    tokens, finished, done, events = None, False, False, 0
    for when, line in _lines(exchange):
        if not line.startswith("data:"):
            continue
        events += 1
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            done = True
            continue
        one = replace(answer, body=data)
        event = one.data()
        usage = event.get("usage")
        if isinstance(usage, dict) and isinstance(usage.get("completion_tokens"), int):
            tokens = usage["completion_tokens"]
        if not event.get("choices"):
            continue  # the last event of a stream with usage
        choice = one.choice()
        finished = finished or choice.get("finish_reason") is not None
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            continue
        said, thought = delta.get("content"), next(iter(thoughts_of(delta, answer.dialect).values()), None)
        if isinstance(said, str) and said:
            content += said
            times.append(when)
        if isinstance(thought, str) and thought:
            thoughts += thought
            times.append(when)
    if not events:
        answer.data()  # an error or a page of HTML is named as such
        raise answer.bad("the answer is not a stream of events, though one was asked for")
    if not times:
        raise answer.bad("the stream brought no text")
    if not (done and finished):
        raise answer.bad(f"the stream ended without {'[DONE]' if finished else 'a finish_reason'}")
    return Stream(
        text=answer.text({"content": content, "the reasoning": thoughts}),
        tokens=tokens if tokens is not None else len(times),
        began=exchange.began,
        first_token_s=times[0] - exchange.began,
        took_s=times[-1] - exchange.began,
    )


def _lines(exchange: Exchange) -> Iterator[tuple[float, str]]:
    """Each line of a body, and when its end came. Split at bytes, because a chunk may end inside a character."""
    rest = b""
    when = exchange.began
    for when, chunk in exchange.chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield when, line.decode(errors="replace").strip()
    yield when, rest.decode(errors="replace").strip()
