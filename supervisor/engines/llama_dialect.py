"""How llama-server speaks: its Dialect, and what its own routes tell. Pure."""

from __future__ import annotations

import json
import math
from typing import Any, Final

from supervisor.dialect import Dialect, Fields, Reading, Request, samples, seeded
from supervisor.engines.llama_protocol import shards

__all__ = ["LLAMA_CPP", "busy_slots", "running", "total_slots", "vision"]


def busy_slots(body: str) -> int | None:
    """How many slots of `/slots` are busy; None when the text is something else."""
    slots = _json(body)
    if not isinstance(slots, list) or not all(isinstance(slot, dict) and "is_processing" in slot for slot in slots):
        return None
    return sum(bool(slot["is_processing"]) for slot in slots) if slots else None


def running(page: str) -> int | None:
    """Requests that run or wait, by the gauges of `/metrics`; None when it has none of them."""
    values = samples(page, "llamacpp:requests_(?:processing|deferred)")
    return math.ceil(sum(values.values())) if values else None


def total_slots(body: str) -> int | None:
    """How many requests are served at once, by `/props`."""
    props = _json(body)
    slots = props.get("total_slots") if isinstance(props, dict) else None
    return slots if type(slots) is int and slots > 0 else None


def vision(body: str) -> bool | None:
    """Whether the model takes pictures, by `/props`."""
    props = _json(body)
    modalities = props.get("modalities") if isinstance(props, dict) else None
    sees = modalities.get("vision") if isinstance(modalities, dict) else None
    return sees if isinstance(sees, bool) else None


def _json(body: str) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _repeatable(seed: int) -> Fields:
    # A cached prompt is computed in other batches, and the numbers differ in the last bits.
    return {**seeded(seed), "top_k": 1, "cache_prompt": False}


def _budget(tokens: int | None) -> Fields:
    return {"thinking_budget_tokens": -1 if tokens is None else tokens}


_HI: Final = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}

LLAMA_CPP: Final = Dialect(
    engine="llama.cpp",
    owned_by="llamacpp",
    generating=(
        Request(path="/v1/chat/completions", body=_HI),
        Request(path="/v1/completions", body={"prompt": "Hi", "max_tokens": 1}),
    ),
    thinking_budget=_budget,
    thinking_hint="thinking_budget_tokens is ignored. For Gemma 4: a llama.cpp build without the thinking-tag patch "
    "(its parser sets no thinking_start_tag, so no budget applies; upstream since PR #21697): apply it, or take b9093 "
    "or later",
    repeatable=_repeatable,
    requests=(Reading(path="/slots", read=busy_slots), Reading(path="/metrics", read=running)),
    token_counters=Reading(path="/metrics", read=lambda page: samples(page, r"llamacpp:\w*token\w*(?<!seconds)_total")),
    slots=Reading(path="/props", read=total_slots),
    vision=Reading(path="/props", read=vision),
    loading="Loading model",
    metrics_hint="llama-server needs --metrics",
    weight_files=shards,
    no_mmap_hint='load without mmap: LlamaServer(load="no-mmap"), or llama-server --no-mmap or --load-mode none',
)
"""The dialect of llama-server; `/health` and the model list answer without a key in builds up to b9940 at least."""
