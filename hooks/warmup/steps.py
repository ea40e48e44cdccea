"""Steps that run each path of a model server once, so that a snapshot holds it warm, and verify what came back.

A path that did not run before the seal is cold after every restore: the chat template's thinking branch, the vision
tower, the grammar of tool calls. So each has a Step of its own, with few tokens; prompts and limits are fields.

Each sends one non-streaming request with temperature 0. It raises `BadAnswer`, or `Unsupported` when the engine has no
chat route. Except `Thinking`, they turn thinking off as the engine's dialect says: it would use up the few tokens.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from hooks.http import picture
from hooks.http.chat import chat, model_of, smallest
from hooks.http.dialect import sleeps
from hooks.warmup.draw import Draw
from hooks.warmup.request_file import RawJson
from supervisor.errors import ProfileError

if TYPE_CHECKING:
    from collections.abc import Callable

    from hooks.http.answer import Answer
    from supervisor.child import Child
    from supervisor.steps import Step

__all__ = ["Image", "Ping", "Text", "Thinking", "Tools", "chat", "parse"]

_FUNCTION: Final = "get_weather"
_TOOL: Final = {
    "type": "function",
    "function": {
        "name": _FUNCTION,
        "description": "Get the current weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name of the city"}},
            "required": ["city"],
        },
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Plain chat: the content must be there, and be text. The words are not judged.

    Attributes:
        prompt: what the user says.
        max_tokens: to generate at most.
        model: the name to ask for, where the server has several; None: the profile's.
        name, deadline_s: see `Step`.
    """

    prompt: str = "Reply with the word OK."
    max_tokens: int = 8
    model: str | None = None
    name: str = "text"
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        _check(self.name, self.prompt, self.max_tokens)

    async def __call__(self, child: Child) -> None:
        """Ask once and verify."""
        (await chat(child, self.prompt, self.max_tokens, self.deadline_s, model=self.model)).content()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ping:
    """A tiny inference for the watchdog: the engine took a request and finished it without an error.

    The content may be blank, unlike that of `Text`: one token is a line break or an end of turn on a healthy model
    often enough, and a watchdog that took it for a hang would kill servers that work. An engine without chats gets the
    first request of its dialect's that generates. A model that the engine says is asleep, one of several, is not asked:
    that would wake it.

    Attributes:
        prompt: what the user says.
        max_tokens: to generate at most.
        model: the name to ask for, where the server has several; None: the profile's.
        name, deadline_s: see `Step`.
    """

    prompt: str = "Hi"
    max_tokens: int = 1
    model: str | None = None
    name: str = "ping"
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        _check(self.name, self.prompt, self.max_tokens)

    async def __call__(self, child: Child) -> None:
        """Ask once and verify, unless the model sleeps."""
        if not await sleeps(child, self.model or model_of(child)):
            await smallest(child, self.prompt, self.max_tokens, self.deadline_s, model=self.model)


@dataclass(frozen=True, slots=True, kw_only=True)
class Thinking:
    """The thinking branch of the chat template: thoughts, or content, or both must be there.

    Content alone passes: a model may think nothing about an easy question, and a server without a parser for the
    model's thinking tags leaves the thoughts in the content.

    Attributes:
        prompt: what the user says.
        max_tokens: to generate at most, thoughts included.
        model: the name to ask for, where the server has several; None: the profile's.
        name, deadline_s: see `Step`.
    """

    prompt: str = "Which is larger, 9.11 or 9.9? Think briefly."
    max_tokens: int = 128
    model: str | None = None
    name: str = "thinking"
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        _check(self.name, self.prompt, self.max_tokens)

    async def __call__(self, child: Child) -> None:
        """Ask once and verify."""
        (await chat(child, self.prompt, self.max_tokens, self.deadline_s, model=self.model, thinking=True)).written()


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """The vision tower: a picture of one colour goes in, content must come out. The words are not judged.

    Attributes:
        prompt: what the user says about the picture.
        max_tokens: to generate at most.
        side_px: width and height of the picture; towers refuse pictures smaller than a patch (28 px at most).
        model: the name to ask for, where the server has several; None: the profile's.
        name, deadline_s: see `Step`.
    """

    prompt: str = "What colour is this picture? One word."
    max_tokens: int = 16
    side_px: int = 64
    model: str | None = None
    name: str = "image"
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        _check(self.name, self.prompt, self.max_tokens)
        if not 1 <= self.side_px <= 4096:
            raise ProfileError(field=f"{self.name}.side_px", value=self.side_px, allowed="from 1 to 4096")

    async def __call__(self, child: Child) -> None:
        """Ask once and verify."""
        content = picture.content(self.prompt, picture.red_square(self.side_px))
        (await chat(child, content, self.max_tokens, self.deadline_s, model=self.model)).content()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """Tool calls: the template's tool branch, the grammar that forces a call, and the parser that finds it.

    Attributes:
        prompt: what the user says; the tool is `get_weather(city)`, and calling it is required.
        max_tokens: to generate at most.
        model: the name to ask for, where the server has several; None: the profile's.
        name, deadline_s: see `Step`.
    """

    prompt: str = "What is the weather in Paris?"
    max_tokens: int = 96
    model: str | None = None
    name: str = "tools"
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        _check(self.name, self.prompt, self.max_tokens)

    async def __call__(self, child: Child) -> None:
        """Ask once and verify."""
        more: dict[str, Any] = {"tools": [_TOOL], "tool_choice": "required"}
        answer = await chat(child, self.prompt, self.max_tokens, self.deadline_s, model=self.model, **more)
        calls = answer.message().get("tool_calls")
        if not isinstance(calls, list) or not calls:
            raise answer.bad(f"the message has no tool_calls, though one was required{answer.hint()}")
        for call in calls:
            _verify_call(answer, call)


def parse(name_or_path: str) -> Step:
    """The Step that a word of the command line means: text, thinking, image, tools, draw, or the path of a JSON file.

    Raises:
        ProfileError: neither a known word nor a file that `RawJson` takes.
    """
    steps: dict[str, Callable[[], Step]] = {
        "text": Text,
        "thinking": Thinking,
        "image": Image,
        "tools": Tools,
        "draw": Draw,
    }
    if name_or_path in steps:
        return steps[name_or_path]()
    if os.sep in name_or_path or name_or_path.endswith(".json") or os.path.isfile(name_or_path):  # noqa: PTH113
        return RawJson(path=name_or_path)
    allowed = "text, thinking, image, tools, draw, or the path of a file that holds a request as JSON"
    raise ProfileError(field="warmup", value=name_or_path, allowed=allowed)


def _verify_call(answer: Answer, call: object) -> None:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        raise answer.bad("a tool call holds no function")
    if function.get("name") != _FUNCTION:
        raise answer.bad(f"a tool call names {function.get('name')!r}, but only {_FUNCTION} was offered")
    try:
        ok = isinstance(json.loads(function["arguments"]), dict)
    except (KeyError, TypeError, ValueError, RecursionError):
        ok = False
    if not ok:
        raise answer.bad(f"the arguments of the tool call are not a JSON object in a string{answer.hint()}")


def _check(step: str, prompt: str, max_tokens: int) -> None:
    if not prompt.strip():
        raise ProfileError(field=f"{step}.prompt", value=prompt, allowed="not blank")
    if max_tokens < 1:
        raise ProfileError(field=f"{step}.max_tokens", value=max_tokens, allowed="at least 1")
