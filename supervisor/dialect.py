"""How an engine speaks, as frozen data and small pure functions, so that no hook asks which engine it is talking to.

An engine sets `Profile.dialect`; the default is that of any OpenAI-compatible server. What an engine does not have is
None: hooks then skip with a word, or say that it is unsupported, and never guess. What the supervisor itself judges
(the health path and its answer, the ready line, log lines, the counters that prove traffic) stands in the profile's own
parts, `Health`, `LogLimits` and `Liveness`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, Literal, TypeVar

__all__ = [
    "Dialect",
    "Fields",
    "ModelState",
    "Reading",
    "Request",
    "no_fields",
    "openai_models",
    "samples",
    "seeded",
    "template_switch",
    "whole_file",
]

T_co = TypeVar("T_co", covariant=True)

Fields = Mapping[str, Any]
"""Fields of a JSON request body."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading(Generic[T_co]):
    """Something that the engine tells about itself on a route.

    Attributes:
        path: asked with GET.
        read: the body of a 200 answer -> the value; None: the body does not tell.
    """

    path: str
    read: Callable[[str], T_co | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A POST request: its route, and its body without `model`."""

    path: str
    body: Fields


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """What an engine that holds several models says of one of them.

    Attributes:
        value: `asleep` and `unloaded` are no errors: the next request may load the model again. `failed`: its process
            ended by itself.
        lost: it stays as it is until somebody mends it, so that requests for it are refused or fail.
        detail: more of it in words, such as an exit code.
    """

    value: Literal["loading", "loaded", "asleep", "unloaded", "failed"]
    lost: bool = False
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.value} ({self.detail})" if self.detail else self.value


def no_fields(*_: object) -> Fields:
    """Fields for an engine that needs none."""
    return {}


def template_switch(thinking: bool) -> Fields:
    """The switch that llama.cpp, SGLang and vLLM hand to the chat template."""
    return {"chat_template_kwargs": {"enable_thinking": thinking}}


def seeded(seed: int) -> Fields:
    """A greedy request that names its seed."""
    return {"temperature": 0, "seed": seed}


def openai_models(body: str) -> tuple[str, ...] | None:
    """Names in OpenAI's model list, aliases last; one that is listed as neither loaded nor asleep does not count."""
    names: list[object] = []
    aliases: list[object] = []
    try:
        for entry in json.loads(body)["data"]:
            status = entry.get("status")
            if not isinstance(status, dict) or status.get("value", "loaded") in ("loaded", "sleeping"):
                names.append(entry["id"])
                aliases += entry.get("aliases") or ()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return tuple(dict.fromkeys(name for name in (*names, *aliases) if isinstance(name, str) and name))


def samples(page: str, pattern: str) -> Mapping[str, float] | None:
    """Samples of a Prometheus page whose name matches the pattern, by name, labels added up; None: there are none.

    None as well when the value of one is not a finite number.
    """
    found: dict[str, float] = {}
    for name, value in re.findall(rf"(?m)^({pattern})(?:\{{[^\n]*\}})?[ \t]+(\S+)", page):
        try:
            found[name] = found.get(name, 0.0) + float(value)
        except ValueError:
            return None
    return found if found and all(map(math.isfinite, found.values())) else None


def whole_file(weights: Path) -> tuple[Path, ...]:
    """A model whose weights are one file."""
    return (weights,)


_HI: Fields = MappingProxyType({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1})


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How one engine speaks. Routes are paths; bodies are JSON; None: the engine has no such thing.

    Attributes:
        engine: its name, for people and logs.
        owned_by: what the engine's own model list gives as `owned_by`, by which an endpoint's engine is recognised.
        models: the names of the models that are loaded.
        states: for an engine that holds several models: what each is doing, by name and alias.
        several: for an engine that may hold several: (the body of its list of models, the model in question or None)
            -> the dialect with readings that ask about that model; None: this server holds one.
        chat_path, completions_path, responses_path, images_path: OpenAI's routes, where the engine has them.
        generating: requests that make the engine generate; each must refuse strangers.
        open_paths: routes that answer without a key by design.
        admin_paths: GET routes without effect that stand for routes of the engine's administration (sleep, pause,
            unload): whoever may ask them may do that, so that they must refuse strangers.
        example: what a person may try first; None: a chat message.
        thoughts: fields of a chat message that may hold the model's thoughts.
        thinking: whether to think -> fields of a chat request.
        thinking_budget: tokens of thought at most (None: no limit) -> fields; None: the engine knows no budget.
        thinking_hint: what to look at when a budget is ignored.
        fewest_tokens: fields of a request that limit what is generated, each with the least that the engine accepts.
        repeatable: seed -> fields that make a greedy request give the same answer each time, past any prompt cache.
        requests: how many requests run or wait; several readings are tried in order.
        token_counters: counters of tokens by name, which grow with every generation.
        slots: how many requests are served at once.
        vision: whether the model takes pictures.
        asleep: whether the engine sleeps, although its health is green; asking does not wake it.
        loading: words in the body of a 503 that say that the model is still loading.
        metrics_hint: what to set when the metrics route is missing.
        weight_files: a model's path -> every file that belongs to it, by name alone.
        no_mmap_hint: how to load the weights without mapping their file.
        io_uring_hint: how to have the server do without io_uring, which no snapshot of processes holds.
        gpu_memory_hint: argv -> why the GPU memory of such a server cannot be put aside, and the setting that avoids
            it, as what follows "because"; None: nothing speaks against it.
        out_of_memory: a regular expression for log lines of a failed allocation.
    """

    engine: str = "plain"
    owned_by: str | None = None
    models: Reading[tuple[str, ...]] | None = field(
        default_factory=lambda: Reading(path="/v1/models", read=openai_models)
    )
    states: Reading[Mapping[str, ModelState]] | None = None
    several: Callable[[str, str | None], Dialect | None] | None = None
    chat_path: str | None = "/v1/chat/completions"
    completions_path: str | None = "/v1/completions"
    responses_path: str | None = "/v1/responses"
    images_path: str | None = None
    generating: tuple[Request, ...] = (Request(path="/v1/chat/completions", body=_HI),)
    open_paths: tuple[str, ...] = ("/health",)
    admin_paths: tuple[str, ...] = ()
    example: Request | None = None
    thoughts: tuple[str, ...] = ("reasoning_content", "reasoning")
    thinking: Callable[[bool], Fields] = template_switch
    thinking_budget: Callable[[int | None], Fields] | None = None
    thinking_hint: str = "see whether the engine's parser knows the model's thinking tags"
    fewest_tokens: Mapping[str, int] = field(
        default_factory=lambda: {"max_tokens": 1, "max_completion_tokens": 1, "max_output_tokens": 16}
    )
    repeatable: Callable[[int], Fields] = seeded
    requests: tuple[Reading[int], ...] = ()
    token_counters: Reading[Mapping[str, float]] | None = None
    slots: Reading[int] | None = None
    vision: Reading[bool] | None = None
    asleep: Reading[bool] | None = None
    loading: str | None = None
    metrics_hint: str = ""
    weight_files: Callable[[Path], tuple[Path, ...]] = whole_file
    no_mmap_hint: str = "have the engine read its weights into memory instead of mapping them"
    io_uring_hint: str = (
        "have its event loop do without, such as asyncio's own in place of uvloop (uvicorn --loop asyncio)"
    )
    gpu_memory_hint: Callable[[Sequence[str]], str | None] | None = None
    out_of_memory: str | None = None

    def allocation_failure(self, lines: Iterable[str]) -> str | None:
        """Return the first of these log lines that tells of a failed allocation."""
        if self.out_of_memory is None:
            return None
        return next((line for line in lines if re.search(self.out_of_memory, line)), None)
