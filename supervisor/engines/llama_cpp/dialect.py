"""How llama-server speaks: routes, health bodies, log lines, counters, names of files. Pure.

The answers that it is tested against were captured from llama.cpp's own server (see tests/testdata).
"""

from __future__ import annotations

import json
import math
import re
from typing import TYPE_CHECKING, Any, Final

from supervisor.dialect import Dialect, Fields, Reading, Request, samples, seeded
from supervisor.engines.settings import accept_status_ok
from supervisor.levels import plain_line

if TYPE_CHECKING:
    from pathlib import Path

    from supervisor.events import Level

__all__ = ["COUNTERS", "LLAMA_CPP", "LOADING", "OUT_OF_MEMORY", "READY", "accept", "parse_line", "shards"]

LOADING: Final = "Loading model"
"""What the body of a 503 says while the model is being loaded."""

# A hint only: the wording differs between builds, and old ones say that they listen before they load.
READY: Final = r"listening on http|model loaded|all slots are idle"
COUNTERS: Final = r"(?m)^llamacpp:(?:prompt_tokens_total|tokens_predicted_total|n_decode_total) +\S+"

OUT_OF_MEMORY: Final = (
    r"insufficient memory|(?:cuda|hip)Malloc\w* failed|CUDA error: out of memory|ErrorOutOfDeviceMemory|std::bad_alloc"
    r"|unable to allocate|failed to allocate(?!.*pinned memory)"  # pinned memory is a wish: without it the load goes on
)
"""What the log says when memory for weights, KV cache or compute buffers could not be had, on a GPU or in RAM."""

LETTERS: Final[dict[str, Level]] = {"T": "debug", "D": "debug", "I": "info", "W": "warning", "E": "error"}
_LOG_LINE: Final = re.compile(r"^\d+\.\d\d\.\d{3}\.\d{3} ([A-Z]) (.*)$", re.DOTALL)
# The router writes a model's lines with the model's port before them.
_OF_A_MODEL: Final = re.compile(r"^(\[ *\d+\] )(.+)$", re.DOTALL)
_SHARD: Final = re.compile(r"^(.*)-\d{5}-of-(\d{5})\.gguf$")


accept = accept_status_ok
"""How `/health` is judged."""


def parse_line(line: str) -> tuple[Level, str]:
    """Read `0.00.005.647 I srv  init: ...`: the letter is the level, the time stamp goes; JSON lines as they are."""
    if match := _OF_A_MODEL.match(line):
        level, text = parse_line(match[2])
        return level, match[1] + text
    if match := _LOG_LINE.match(line):
        return LETTERS.get(match[1], "info"), match[2]
    if line.startswith("error"):  # what the argument parser complains of carries no prefix
        return "error", line
    level, text = plain_line(line)
    return level, text.rstrip("\n")  # --log-jsonl keeps the line break in its messages


def shards(model: Path) -> tuple[Path, ...]:
    """Return all files of a model, by its name alone: `m-00001-of-00003.gguf` stands for three."""
    if not (match := _SHARD.match(model.name)):
        return (model,)
    return tuple(model.with_name(f"{match[1]}-{i:05}-of-{match[2]}.gguf") for i in range(1, int(match[2]) + 1))


def thinking_budget(tokens: int | None) -> Fields:
    """Return the field that limits a chat's thoughts; -1 is llama.cpp's word for no limit."""
    return {"thinking_budget_tokens": -1 if tokens is None else tokens}


def repeatable(seed: int) -> Fields:
    """Return the fields of a greedy request that is computed anew each time.

    Without `cache_prompt: false` a prompt that was seen before is computed in other batches, and the log-probabilities
    differ in their last bits.
    """
    return {**seeded(seed), "top_k": 1, "cache_prompt": False}


def busy_slots(body: str) -> int | None:
    """Count the slots that process a request; None when the body is no list of slots."""
    slots = _json(body)
    if not isinstance(slots, list) or not slots:
        return None
    if not all(isinstance(slot, dict) and "is_processing" in slot for slot in slots):
        return None
    return sum(bool(slot["is_processing"]) for slot in slots)


def running(page: str) -> int | None:
    """Count the requests that run or wait, by the gauges of `/metrics`; None when the page has none of them."""
    values = samples(page, "llamacpp:requests_(?:processing|deferred)")
    return math.ceil(sum(values.values())) if values else None


def total_slots(body: str) -> int | None:
    """Return how many slots there are, from `/props`."""
    props = _json(body)
    slots = props.get("total_slots") if isinstance(props, dict) else None
    return slots if type(slots) is int and slots > 0 else None


def asleep(body: str) -> bool | None:
    """Return whether the server has unloaded its model for want of requests, from `/props`."""
    props = _json(body)
    sleeps = props.get("is_sleeping") if isinstance(props, dict) else None
    return sleeps if isinstance(sleeps, bool) else None


def of_several(models: str, model: str | None) -> Dialect | None:
    """Return the dialect of a router, which tells the state of each model in its list of them; None: it is none."""
    from supervisor.engines.llama_cpp.router_dialect import dialect_of, parse_states  # it is made of this dialect

    return dialect_of([model] if model else []) if parse_states(models) else None


def vision(body: str) -> bool | None:
    """Return whether the model takes pictures, from `/props`."""
    props = _json(body)
    modalities = props.get("modalities") if isinstance(props, dict) else None
    sees = modalities.get("vision") if isinstance(modalities, dict) else None
    return sees if isinstance(sees, bool) else None


def _json(body: str) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


_HI: Final = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}

LLAMA_CPP: Final = Dialect(
    engine="llama.cpp",
    owned_by="llamacpp",
    generating=(
        Request(path="/v1/chat/completions", body=_HI),
        Request(path="/v1/completions", body={"prompt": "Hi", "max_tokens": 1}),
        Request(path="/v1/responses", body={"input": "Hi", "max_output_tokens": 1}),
        Request(path="/v1/messages", body=_HI),
        Request(path="/v1/embeddings", body={"input": "Hi"}),
        Request(path="/completion", body={"prompt": "Hi", "n_predict": 1}),
        Request(path="/infill", body={"input_prefix": "Hi", "input_suffix": "", "n_predict": 1}),
    ),
    open_paths=("/health", "/v1/health"),
    thinking_budget=thinking_budget,
    thinking_hint="thinking_budget_tokens is ignored. For Gemma 4: a llama.cpp build without the thinking-tag patch "
    "(its parser sets no thinking_start_tag, so no budget applies; upstream since PR #21697): apply it, or take b9093 "
    "or later",
    fewest_tokens={**Dialect().fewest_tokens, "n_predict": 1},
    repeatable=repeatable,
    # In this order: asked while the server sleeps, /slots would load the model again, and /metrics does not.
    requests=(Reading(path="/metrics", read=running), Reading(path="/slots", read=busy_slots)),
    token_counters=Reading(path="/metrics", read=lambda page: samples(page, r"llamacpp:\w*token\w*(?<!seconds)_total")),
    slots=Reading(path="/props", read=total_slots),
    vision=Reading(path="/props", read=vision),
    asleep=Reading(path="/props", read=asleep),
    several=of_several,
    loading=LOADING,
    metrics_hint="llama-server needs --metrics",
    weight_files=shards,
    no_mmap_hint='load without mmap: LlamaServer(load="no-mmap"), or llama-server --no-mmap or --load-mode none',
    out_of_memory=OUT_OF_MEMORY,
)
"""How llama-server speaks; `/health` and the model list answer without a key in builds up to b9940 at least."""
