"""Asking an engine the same thing twice, and how two answers differ."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

from hooks.golden.generation import Generation
from hooks.http.ask import ask
from hooks.http.chat import model_of

if TYPE_CHECKING:
    from hooks.http.answer import Answer
    from supervisor import Child
    from supervisor.dialect import Request

__all__ = ["Reply", "ask_for", "difference"]

# Parts of an answer that name this one answer, or say how long it took.
_FLEETING: Final = {"id", "created", "created_at", "timings", "system_fingerprint", "usage", "request_id"}


class Reply:
    """What must be the same each time: a generation with its log-probabilities, pictures, or the JSON.

    Attributes:
        generation: of a chat; None for other routes.
        rest: of other routes: what must be equal.
        words: what was answered, for people.
    """

    def __init__(self, answer: Answer, request: Request) -> None:
        data = answer.data()
        dialect = answer.dialect
        self.generation: Generation | None = None
        self.rest: object = None
        if request.path == dialect.chat_path:
            self.generation = Generation.read(answer)
            tokens = len(self.generation.tokens)
            self.words = f"{tokens} tokens with log-probabilities" if tokens else "text without log-probabilities"
        elif request.path == dialect.images_path:
            pictures = [base64.b64decode(entry["b64_json"], validate=True) for entry in data["data"]]
            if not pictures or not all(pictures):
                raise answer.bad("the answer holds no picture")
            self.rest = [hashlib.sha256(picture).hexdigest() for picture in pictures]
            self.words = f"{len(pictures)} picture(s), {sum(map(len, pictures))} bytes"
        else:
            self.rest = _lasting(data)
            choices = data.get("choices")
            with_logprobs = isinstance(choices, list) and bool(choices and choices[0].get("logprobs"))
            self.words = "text with log-probabilities" if with_logprobs else "JSON"


async def ask_for(child: Child, request: Request) -> Reply:
    """Send the request, greedy and past the prompt cache where the dialect knows how.

    Raises:
        BadAnswer: the answer is none.
    """
    dialect = child.profile.dialect
    body: dict[str, Any] = {"model": model_of(child)}
    if request.path == dialect.chat_path:
        body |= {**dialect.thinking(False), **dialect.repeatable(1), "logprobs": True, "top_logprobs": 1}
    elif request.path == dialect.completions_path:
        body |= {**dialect.repeatable(1), "logprobs": 1}
    answer = await ask(child, request.path, {**body, **request.body})
    if request.path == dialect.chat_path and answer.status in (400, 422) and "logprob" in answer.body.lower():
        without = {name: value for name, value in body.items() if name not in ("logprobs", "top_logprobs")}
        answer = await ask(child, request.path, {**without, **request.body})
    return Reply(answer, request)


def difference(one: Reply, other: Reply, tolerance: float) -> str | None:
    """How the second answer differs; None when it does not."""
    if one.generation and other.generation:
        return one.generation.difference(other.generation, tolerance)
    if one.rest == other.rest:
        return None
    return f"{_short(one.rest)} became {_short(other.rest)}"


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else f"{text[:300]}..."


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _lasting(inner) for name, inner in value.items() if name not in _FLEETING}
    return [_lasting(inner) for inner in value] if isinstance(value, list) else value
