"""A chat completion: the request as the engine's dialect has it, and its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hooks.http.answer import Answer
from hooks.http.ask import ask
from hooks.http.dialect import route

if TYPE_CHECKING:
    from supervisor.child import Child

__all__ = ["chat", "chat_body", "model_of", "smallest"]


async def chat(
    child: Child,
    content: str | list[dict[str, Any]],
    max_tokens: int,
    deadline_s: float | None,
    *,
    model: str | None = None,
    thinking: bool = False,
    **more: Any,
) -> Answer:
    """Sends one user message to the engine's chat route, greedy.

    Args:
        child: the server.
        content: the words, or parts as `hooks.http.picture.content` makes them.
        max_tokens: to generate at most.
        deadline_s: of each network operation; None: the profile's `timeouts.step_s`.
        model: the name to ask for; None: the profile's.
        thinking: whether the chat template may turn thinking on.
        more: fields of the request in addition.

    Raises:
        BadAnswer: see `hooks.http.ask.ask`.
        Unsupported: the engine has no chat route.
    """
    path = route(child, "chat_path")
    if model is not None:
        more["model"] = model
    return await ask(
        child, path, chat_body(child, content, max_tokens, thinking=thinking, **more), timeout_s=deadline_s
    )


def chat_body(
    child: Child, content: str | list[dict[str, Any]], max_tokens: int, *, thinking: bool = False, **more: Any
) -> dict[str, Any]:
    """The body of a greedy chat request with one user message; see `chat`."""
    return {
        "model": model_of(child),
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "temperature": 0,
        **child.profile.dialect.thinking(thinking),
        **more,
    }


async def smallest(
    child: Child, prompt: str, max_tokens: int, deadline_s: float | None, *, model: str | None = None
) -> Answer:
    """A small generation: a chat message; an engine without chats gets its dialect's first request that generates.

    Args: see `chat`.

    Raises:
        BadAnswer: the answer is none, or an error.
        Unsupported: the engine has no route for either.
    """
    generating = child.profile.dialect.generating
    if child.profile.dialect.chat_path is not None or not generating:
        answer = await chat(child, prompt, max_tokens, deadline_s, model=model)
        answer.message()
        return answer
    body = {"model": model or model_of(child), **generating[0].body}
    answer = await ask(child, generating[0].path, body, timeout_s=deadline_s)
    answer.data()
    return answer


def model_of(child: Child) -> str:
    """The name of the model to ask for."""
    return child.profile.health.model_id or "default"
