"""The checks of a smoke test: each makes its requests, and returns what it saw or raises.

A check is `async (Visit, slots) -> Passed`. It raises `Doubt`, `BadAnswer` or `AuthError`, and `Moot` or `Unsupported`
when the model or the engine is not made for what is checked.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio

from hooks.auth import COMMAND_LINE, AuthCheck
from hooks.http.answer import BadAnswer
from hooks.http.ask import ask
from hooks.http.chat import chat_body, model_of, smallest
from hooks.http.counters import moved, token_counters
from hooks.http.dialect import Unsupported, read, route
from hooks.http.images import pictures
from hooks.http.stream import Stream, stream
from hooks.http.text import shorten
from hooks.warmup.steps import Image, Tools

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from hooks.http.answer import Answer
    from hooks.http.endpoint import Visit
    from supervisor.dialect import Reading

__all__ = ["CHECKS", "Doubt", "Moot", "Passed", "repeatable"]

_BUDGETS: Final[dict[str, int | None]] = {"0": 0, "32": 32, "unlimited": None}
_THINKING_TOKENS: Final = 1024
_SEED: Final = 42
_PICTURE: Final = "256x256"

T = TypeVar("T")


class Doubt(Exception):
    """Answers came, but not those of a working server. The message is redacted."""


class Moot(Exception):
    """There is nothing to check; the check is skipped, unless the user named it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """A passed check: what was seen, in words and in numbers (units in the names)."""

    detail: str
    numbers: Mapping[str, float | None] = field(default_factory=dict)


def repeatable(visit: Visit, prompt: str, max_tokens: int, *, thinking: bool = False, **more: Any) -> dict[str, Any]:
    """The body of a chat request that a working engine answers alike each time, as its dialect says."""
    return chat_body(visit, prompt, max_tokens, thinking=thinking, **visit.profile.dialect.repeatable(_SEED), **more)


async def _chat(visit: Visit, body: Mapping[str, Any]) -> Answer:
    return await ask(visit, route(visit, "chat_path"), body)


def in_words(streamed: Stream) -> str:
    """How fast a stream was."""
    speed = streamed.tokens_per_s
    rate = f"{speed:.1f} tokens/s" if speed else "no tokens/s: all tokens came at once"
    return f"first token after {streamed.first_token_s:.3f} s, {streamed.tokens} tokens, {rate}"


async def _auth(visit: Visit, _: object) -> Passed:
    await AuthCheck(words=COMMAND_LINE)(visit)
    if visit.profile.open_access:
        return Passed(detail="open, as it is meant to be")
    return Passed(detail="no key and a wrong key are refused, ours is taken (Authorization: Bearer KEY)")


async def _model(visit: Visit, _: object) -> Passed:
    dialect = visit.profile.dialect
    if dialect.models is None:
        raise Unsupported(f"the engine ({dialect.engine}) has no list of models")
    answer = await ask(visit, dialect.models.path)
    answer.data()  # raises, with the words for what it is instead
    names = dialect.models.read(answer.body)
    wanted = visit.profile.health.model_id
    if not names:
        raise answer.bad(f"{dialect.models.path} lists no model")
    if wanted not in names:
        raise answer.bad(f"the endpoint serves {', '.join(map(repr, names))}, not {wanted!r}")
    return Passed(detail=f"serves {shorten(repr(wanted))}")


async def _text(visit: Visit, _: object) -> Passed:
    body = repeatable(visit, "Return the word OK only.", 16)
    first = (await _chat(visit, body)).content()
    again = (await _chat(visit, body)).content()
    if first != again:
        seen = visit.redact(f"{shorten(first, 80)!r}, then {shorten(again, 80)!r}")
        raise Doubt(f"not deterministic: the same request (temperature 0, one seed) got {seen}")
    return Passed(detail=visit.redact(f"twice {shorten(first, 80)!r} (temperature 0, one seed)"))


async def _thinking(visit: Visit, _: object) -> Passed:
    dialect = visit.profile.dialect
    if dialect.thinking_budget is None:
        raise Unsupported(f"the engine ({dialect.engine}) knows no budget of thinking, so nothing can be compared")
    prompt = "How many prime numbers lie between 100 and 130? Check each candidate."
    chars = dict.fromkeys(_BUDGETS, 0)
    for name in ("32", "0", "unlimited"):  # a model without thoughts at 32 has none at all, and no more is spent on it
        budget = dialect.thinking_budget(_BUDGETS[name])
        answer = await _chat(visit, repeatable(visit, prompt, _THINKING_TOKENS, thinking=True, **budget))
        for where, thoughts in answer.thoughts().items():
            if not isinstance(thoughts, str):
                raise answer.bad(f"{where} is of type {type(thoughts).__name__}, not text")
            answer.text({where: thoughts})
            chars[name] = len(thoughts)
        if name == "32":
            answer.content()  # thoughts cut short must be followed by an answer
            if not chars[name]:
                raise Moot(
                    "no reasoning at a budget of 32 tokens: the model does not think, its template cannot be told to, "
                    "or its tags are not parsed"
                )
    none, some, full = chars.values()
    seen = f"{none}, {some} and {full} characters of reasoning at budgets {', '.join(_BUDGETS)}"
    if full <= max(none, some):
        raise Doubt(f"{seen}: {dialect.thinking_hint}")
    if some <= none:
        raise Doubt(f"{seen}: a budget of 32 tokens gave no more thought than none")
    return Passed(detail=seen, numbers={f"reasoning_chars_{name}": count for name, count in chars.items()})


async def _image(visit: Visit, _: object) -> Passed:
    vision = visit.profile.dialect.vision
    if vision and await _or_none(visit, vision) is False:
        raise Moot(f"{vision.path} says that the model has no vision")
    await Image()(visit)
    return Passed(detail="a picture was taken and spoken about")


async def _or_none(visit: Visit, reading: Reading[T]) -> T | None:
    """What the server tells about itself; None when it does not, or does not answer."""
    try:
        return await read(visit, reading)
    except BadAnswer:
        return None


async def _tools(visit: Visit, _: object) -> Passed:
    await Tools()(visit)
    return Passed(detail="the required tool call came, and its arguments are JSON")


async def _responses(visit: Visit, _: object) -> Passed:
    body = {"model": model_of(visit), "temperature": 0, **visit.profile.dialect.thinking(False)}
    body |= {"input": "Say hello.", "max_output_tokens": 64}
    answer = await ask(visit, route(visit, "responses_path"), body)
    output = answer.data().get("output")
    items = [item for item in output if isinstance(item, dict)] if isinstance(output, list) else []
    said = {
        f"output[{i}].content": item.get("content") for i, item in enumerate(items) if item.get("type") == "message"
    }
    text = answer.text(said or {"an output of type message": None})
    return Passed(detail=visit.redact(f"answered {shorten(text, 80)!r}"))


async def _stream(visit: Visit, _: object) -> Passed:
    streamed = await stream(visit, repeatable(visit, "Write three sentences about the sea.", 96))
    numbers = {
        "first_token_s": streamed.first_token_s,
        "tokens": streamed.tokens,
        "tokens_per_s": streamed.tokens_per_s,
    }
    return Passed(detail=in_words(streamed), numbers=numbers)


async def _draw(visit: Visit, _: object) -> Passed:
    path = route(visit, "images_path")
    body = {"model": model_of(visit), "prompt": "a lighthouse", "n": 1, "size": _PICTURE, "response_format": "b64_json"}
    body |= visit.profile.dialect.repeatable(_SEED)
    began = time.monotonic()
    (first,) = pictures(await ask(visit, path, body), body)
    took_s = time.monotonic() - began
    (again,) = pictures(await ask(visit, path, body), body)
    if first != again:
        raise Doubt("not deterministic: the same request (one seed) got two pictures")
    seen = f"twice the same {first.kind} of {_PICTURE} (one seed), the first after {took_s:.2f} s"
    return Passed(detail=seen, numbers={"picture_s": took_s})


async def _metrics(visit: Visit, _: object) -> Passed:
    before = await token_counters(visit)
    await smallest(visit, "Count to five.", 16, None)
    if not (grown := await moved(visit, before)):
        raise Doubt(f"a generation moved none of {', '.join(before)}: the page is not live, or another server's")
    return Passed(detail=", ".join(f"{name} +{value:g}" for name, value in grown.items()), numbers=grown)


async def _concurrency(visit: Visit, slots: int | None) -> Passed:
    route(visit, "chat_path")  # before many ask at once
    route(visit, "chat_path")
    slots = await _slots(visit, slots)
    done: list[Stream] = []
    failures: list[BadAnswer] = []

    async def one(number: int) -> None:
        try:
            done.append(await stream(visit, repeatable(visit, f"Write a sentence about the number {number}.", 32)))
        except BadAnswer as error:
            failures.append(error)

    began = time.monotonic()
    async with anyio.create_task_group() as tasks:
        for number in range(slots):
            tasks.start_soon(one, number)
    took_s = time.monotonic() - began
    if failures:
        raise Doubt(f"{len(failures)} of {slots} requests at the same time failed, the first: {failures[0].reason}")
    rate = sum(each.tokens for each in done) / took_s
    latest_s = max(each.first_token_s for each in done)
    return Passed(
        detail=f"{slots} at the same time: the last first token after {latest_s:.3f} s, {rate:.1f} tokens/s in all",
        numbers={"slots": slots, "took_s": took_s, "latest_first_token_s": latest_s, "tokens_per_s": rate},
    )


async def _slots(visit: Visit, wanted: int | None) -> int:
    """How many requests are served at once: as the user says, or the server; they may not contradict each other."""
    slots = visit.profile.dialect.slots
    if slots is None:
        if wanted is None:
            raise Unsupported("how many slots there are is not known, because the engine does not tell; say how many")
        return wanted
    actual = await _or_none(visit, slots)
    if actual is None:
        if wanted is None:
            raise Doubt(f"how many slots there are is not known, because {slots.path} does not tell; say how many")
        return wanted
    if wanted not in (None, actual):
        raise Doubt(f"the server has {actual} slots, not {wanted}")
    return actual


CHECKS: Final[dict[str, Callable[[Visit, int | None], Awaitable[Passed]]]] = {
    "auth": _auth,
    "model": _model,
    "text": _text,
    "thinking": _thinking,
    "image": _image,
    "tools": _tools,
    "responses": _responses,
    "stream": _stream,
    "draw": _draw,
    "metrics": _metrics,
    "concurrency": _concurrency,
}
"""The checks by name, in the order in which they run; the second argument is the number of slots, if it was given."""
