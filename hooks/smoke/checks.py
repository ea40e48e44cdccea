"""The checks of a smoke test: each makes its requests, and returns what it found or raises.

A check is `async (Visit, slots) -> Finding`. It raises `Doubt`, `BadAnswer` or `AuthError`, or
`Moot` when the model is not made for what is checked.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import anyio

from hooks.auth import AuthCheck
from hooks.http.answer import Answer, BadAnswer, ask
from hooks.http.counters import moved, token_counters
from hooks.http.stream import Stream, stream
from hooks.http.text import shorten
from hooks.warmup.request_file import CHAT
from hooks.warmup.steps import Image, Tools

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from hooks.http.endpoint import Visit

__all__ = ["CHECKS", "Doubt", "Finding", "Moot", "chat_body"]

BUDGETS: Final = {"0": 0, "32": 32, "unlimited": -1}  # -1 is llama.cpp's word for no limit
_THINKING_TOKENS: Final = 1024
_PATCH: Final = (
    "thinking_budget_tokens is ignored. For Gemma 4: a llama.cpp build without the thinking-tag patch (its parser "
    "sets no thinking_start_tag, so no budget applies; upstream since PR #21697): apply it, or take b9093 or later"
)


class Doubt(Exception):
    """Answers came, but not what a working server gives. The message is redacted."""


class Moot(Exception):
    """There is nothing to check; the check is skipped, unless the user named it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A passed check: what was seen, in words and in numbers (units in the names)."""

    detail: str
    numbers: Mapping[str, float | None] = field(default_factory=dict)


def chat_body(visit: Visit, prompt: str, max_tokens: int, *, thinking: bool = False, **more: Any) -> dict[str, Any]:
    """A chat request that a working server answers alike each time: greedy, seeded, without its prompt cache."""
    return {
        "model": visit.profile.health.model_id or "default",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "seed": 42,
        "cache_prompt": False,  # a cached prompt is computed in other batches, and the numbers differ in the last bits
        "chat_template_kwargs": {"enable_thinking": thinking},
        **more,
    }


def in_words(streamed: Stream) -> str:
    """How fast a stream was."""
    speed = streamed.tokens_per_s
    rate = f"{speed:.1f} tokens/s" if speed else "no tokens/s: all tokens came at once"
    return f"first token after {streamed.first_token_s:.3f} s, {streamed.tokens} tokens, {rate}"


async def _auth(visit: Visit, _: object) -> Finding:
    await AuthCheck()(visit)
    if visit.profile.open_access:
        return Finding(detail="open, as it is meant to be")
    return Finding(detail="no key and a wrong key are refused, ours is taken (Authorization: Bearer KEY)")


async def _model(visit: Visit, _: object) -> Finding:
    answer = await ask(visit, "/v1/models")
    names = model_names(answer)
    wanted = visit.profile.health.model_id
    if not names:
        raise answer.bad("/v1/models lists no model")
    if wanted not in names:
        raise answer.bad(f"the endpoint serves {', '.join(map(repr, names))}, not {wanted!r}")
    return Finding(detail=f"serves {shorten(repr(wanted))}")


def model_names(answer: Answer) -> list[str]:
    """The names that an answer of `/v1/models` lists, aliases last; raises `BadAnswer`."""
    entries = answer.data().get("data")
    entries = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    lists = [entry.get("aliases") for entry in entries]
    aliases = [alias for each in lists if isinstance(each, list) for alias in each]
    return [name for name in (*(entry.get("id") for entry in entries), *aliases) if isinstance(name, str) and name]


async def _text(visit: Visit, _: object) -> Finding:
    body = chat_body(visit, "Return the word OK only.", 16)
    first = (await ask(visit, CHAT, body)).content()
    again = (await ask(visit, CHAT, body)).content()
    if first != again:
        seen = visit.redact(f"{shorten(first, 80)!r}, then {shorten(again, 80)!r}")
        raise Doubt(f"not deterministic: the same request (temperature 0, one seed) got {seen}")
    return Finding(detail=visit.redact(f"twice {shorten(first, 80)!r} (temperature 0, one seed)"))


async def _thinking(visit: Visit, _: object) -> Finding:
    prompt = "How many prime numbers lie between 100 and 130? Check each candidate."
    chars = dict.fromkeys(BUDGETS, 0)
    for name in ("32", "0", "unlimited"):  # a model without thoughts at 32 has none at all, and no more is spent on it
        body = chat_body(visit, prompt, _THINKING_TOKENS, thinking=True, thinking_budget_tokens=BUDGETS[name])
        answer = await ask(visit, CHAT, body)
        message = answer.message()
        thoughts = message.get("reasoning_content") or message.get("reasoning") or ""
        if not isinstance(thoughts, str):
            raise answer.bad(f"reasoning_content is of type {type(thoughts).__name__}, not text")
        chars[name] = len(thoughts)
        if thoughts:
            answer.text({"reasoning_content": thoughts})
        if name == "32":
            answer.content()  # thoughts cut short must be followed by an answer
            if not thoughts:
                raise Moot(
                    "no reasoning at a budget of 32 tokens: the model does not think, its template takes no "
                    "enable_thinking, or its tags are not parsed"
                )
    none, some, full = chars.values()
    seen = f"{none}, {some} and {full} characters of reasoning at budgets {', '.join(BUDGETS)}"
    if full <= max(none, some):
        raise Doubt(f"{seen}: {_PATCH}")
    if some <= none:
        raise Doubt(f"{seen}: a budget of 32 tokens gave no more thought than none")
    return Finding(detail=seen, numbers={f"reasoning_chars_{name}": count for name, count in chars.items()})


async def _image(visit: Visit, _: object) -> Finding:
    with contextlib.suppress(BadAnswer):  # only llama.cpp tells
        modalities = (await ask(visit, "/props")).data().get("modalities")
        if isinstance(modalities, dict) and modalities.get("vision") is False:
            raise Moot("/props says that the model has no vision")
    await Image()(visit)
    return Finding(detail="a picture was taken and spoken about")


async def _tools(visit: Visit, _: object) -> Finding:
    await Tools()(visit)
    return Finding(detail="the required tool call came, and its arguments are JSON")


async def _responses(visit: Visit, _: object) -> Finding:
    body = chat_body(visit, "", 64)
    body = {name: body[name] for name in ("model", "temperature", "chat_template_kwargs")}
    answer = await ask(visit, "/v1/responses", {**body, "input": "Say hello.", "max_output_tokens": 64})
    output = answer.data().get("output")
    items = [item for item in output if isinstance(item, dict)] if isinstance(output, list) else []
    said = {
        f"output[{i}].content": item.get("content") for i, item in enumerate(items) if item.get("type") == "message"
    }
    text = answer.text(said or {"an output of type message": None})
    return Finding(detail=visit.redact(f"answered {shorten(text, 80)!r}"))


async def _stream(visit: Visit, _: object) -> Finding:
    streamed = await stream(visit, chat_body(visit, "Write three sentences about the sea.", 96))
    numbers = {
        "first_token_s": streamed.first_token_s,
        "tokens": streamed.tokens,
        "tokens_per_s": streamed.tokens_per_s,
    }
    return Finding(detail=in_words(streamed), numbers=numbers)


async def _metrics(visit: Visit, _: object) -> Finding:
    before = await token_counters(visit)
    (await ask(visit, CHAT, chat_body(visit, "Count to five.", 16))).message()
    if not (grown := await moved(visit, before)):
        raise Doubt(f"a completion moved none of {', '.join(before)}: the page is not live, or another server's")
    return Finding(detail=", ".join(f"{name} +{value:g}" for name, value in grown.items()), numbers=grown)


async def _concurrency(visit: Visit, slots: int | None) -> Finding:
    slots = await _slots(visit, slots)
    done: list[Stream] = []
    failures: list[BadAnswer] = []

    async def one(number: int) -> None:
        try:
            done.append(await stream(visit, chat_body(visit, f"Write a sentence about the number {number}.", 32)))
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
    return Finding(
        detail=f"{slots} at the same time: the last first token after {latest_s:.3f} s, {rate:.1f} tokens/s in all",
        numbers={"slots": slots, "took_s": took_s, "latest_first_token_s": latest_s, "tokens_per_s": rate},
    )


async def _slots(visit: Visit, wanted: int | None) -> int:
    """How many slots there are: as the user says, or the server; they may not contradict each other."""
    answer = await ask(visit, "/props")
    try:
        told = answer.data().get("total_slots")
    except BadAnswer as error:
        if wanted is None:
            raise answer.bad(
                "how many slots there are is not known, because /props does not tell; say how many"
            ) from error
        return wanted
    if type(told) is not int or told < 1:
        if wanted is None:
            raise answer.bad("how many slots there are is not known: /props holds no total_slots; say how many")
        return wanted
    if wanted not in (None, told):
        raise answer.bad(f"the server has {told} slots, not {wanted}")
    return told


CHECKS: Final[dict[str, Callable[[Visit, int | None], Awaitable[Finding]]]] = {
    "auth": _auth,
    "model": _model,
    "text": _text,
    "thinking": _thinking,
    "image": _image,
    "tools": _tools,
    "responses": _responses,
    "stream": _stream,
    "metrics": _metrics,
    "concurrency": _concurrency,
}
"""What can be checked at once, in this order; the second argument is the number of slots, if the user gave one."""
