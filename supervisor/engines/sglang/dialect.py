"""How SGLang's server speaks: routes, log lines, counters, names of files. Pure.

The answers that it is tested against were captured from SGLang 0.5.23 (see tests/testdata/sglang).
"""

from __future__ import annotations

import json
import math
import re
import secrets
from functools import partial
from typing import TYPE_CHECKING, Final

from supervisor.dialect import Dialect, Fields, Reading, Request, samples, seeded
from supervisor.engines.settings import shares_gpu_memory
from supervisor.levels import plain_line

if TYPE_CHECKING:
    from pathlib import Path

    from supervisor.events import Level

__all__ = [
    "COUNTERS",
    "QUICK_CRASH",
    "QUIET_HEALTH",
    "READY",
    "SGLANG",
    "VITAL",
    "in_flight",
    "parse_line",
    "weight_files",
]

READY: Final = r"The server is fired up and ready to roll!"
COUNTERS: Final = r"(?m)^sglang:(?:prompt|generation)_tokens_total(?:\{[^\n]*\})? +\S+"
VITAL: Final = (r"^sglang::scheduler", r"^sglang::detokenizer", r"^sglang::data_parallel_controller")
"""The titles of its processes; when one of them ends, the main process learns of it seconds later."""

QUIET_HEALTH: Final = {
    # Otherwise each probe computes a token, takes a second at least, and kills an engine whose memory is released.
    "SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "0",
    # The same for /health_generate, which asks nobody for a key; builds that do not know the variable ignore it.
    "SGLANG_DIAG_BYPASS_HEALTH_GENERATE": "1",
}
"""Variables under which `/health` tells only whether the warmup is done and no stop is under way."""

QUICK_CRASH: Final = {
    # Else a main process whose worker died waits 5 s for the GPU to settle, and 60 s more for core dumps of CUDA.
    "SGLANG_PYSPY_DUMP_BEFORE_CRASH": "0",
    "SGLANG_CUDA_COREDUMP_BEFORE_CRASH": "0",
}
"""Variables under which a crash ends at once, so that a restart can begin; `env` overrides them."""

OUT_OF_MEMORY: Final = (
    r"torch\.(?:cuda\.)?OutOfMemoryError|CUDA out of memory|CUDA error: out of memory|Not enough memory"
    r"|DefaultCPUAllocator: can't allocate memory|MemoryError"
)
_LEVELS: Final[dict[str, Level]] = {
    "DEBUG": "debug",
    "INFO": "info",
    "WARNING": "warning",
    "ERROR": "error",
    "CRITICAL": "error",
}
_STAMPED: Final = re.compile(r"^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?: [^\]]*)?\] (.*)$", re.DOTALL)
_PREFIXED: Final = re.compile(r"^(DEBUG|INFO|WARNING|ERROR|CRITICAL): +(.*)$", re.DOTALL)  # uvicorn
_ALARM: Final = re.compile(
    r"^(?:[\w.]*(?:Error|Exception)\b|Traceback \(most recent call last\)|.*(?:hit an exception|SIGQUIT received|"
    r"Health check failed|Initialization failed|crashed with exit code|Subprocess .* crashed))"
)


def parse_line(line: str) -> tuple[Level, str]:
    """Read `[2026-11-21 14:42:37 TP0] text`: the time stamp goes; SGLang writes no level, so words of alarm tell it."""
    if match := _STAMPED.match(line):
        text = match[1]
        if prefixed := _PREFIXED.match(text):
            return _LEVELS[prefixed[1]], prefixed[2]
        return ("error" if _ALARM.match(text) else plain_line(text)[0]), text
    if match := _PREFIXED.match(line):
        return _LEVELS[match[1]], match[2]
    if _ALARM.match(line):
        return "error", line
    return plain_line(line)


def weight_files(model: Path) -> tuple[Path, ...]:
    """Return the weights in a directory, or the file itself; nothing when the model has yet to be fetched."""
    if not model.is_dir():
        return (model,) if model.is_file() else ()
    return tuple(sorted(model.glob("*.safetensors")) or sorted(model.glob("*.bin")) or sorted(model.glob("*.gguf")))


def repeatable(seed: int) -> Fields:
    """Return the fields of a greedy request that is computed anew each time.

    A salt of its own keeps it apart from every prompt that the radix cache holds, so that nothing need be flushed.
    """
    return {**seeded(seed), "cache_salt": secrets.token_hex(8)}


def in_flight(body: str) -> int | None:
    """Count the requests that run or wait, by `/v1/loads`, over all data-parallel ranks; None when it does not tell."""
    try:
        loads = json.loads(body)["loads"]
        counts = [load["num_running_reqs"] + load["num_waiting_reqs"] for load in loads]
        return sum(counts) if counts and all(type(count) is int for count in counts) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def running(page: str) -> int | None:
    """Count the requests that run or wait, by the gauges of `/metrics`; None when the page has none of them."""
    values = samples(page, "sglang:num_(?:running|queue)_reqs")
    return math.ceil(sum(values.values())) if values else None


def sees(body: str) -> bool | None:
    """Return whether the model takes pictures, from `/model_info`."""
    try:
        value = json.loads(body).get("has_image_understanding")
    except (ValueError, AttributeError, RecursionError):
        return None
    return value if isinstance(value, bool) else None


_HI: Final = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
_TEXT: Final = {"text": "Hi", "sampling_params": {"max_new_tokens": 1}}

SGLANG: Final = Dialect(
    engine="sglang",
    owned_by="sglang",
    generating=(
        Request(path="/v1/chat/completions", body=_HI),
        Request(path="/v1/completions", body={"prompt": "Hi", "max_tokens": 1}),
        Request(path="/v1/responses", body={"input": "Hi", "max_output_tokens": 1}),
        Request(path="/v1/messages", body=_HI),
        Request(path="/v1/embeddings", body={"input": "Hi"}),
        Request(path="/v1/score", body={"query": "Hi", "items": ["Hi"], "label_token_ids": [1]}),
        Request(path="/v1/rerank", body={"query": "Hi", "documents": ["Hi"]}),
        Request(path="/generate", body=_TEXT),
        Request(path="/encode", body={"text": "Hi"}),
        Request(path="/classify", body={"text": "Hi"}),
        Request(path="/invocations", body=_HI),
        Request(path="/vertex_generate", body={"instances": [{"text": "Hi"}]}),
        Request(path="/api/chat", body={**_HI, "stream": False}),
        Request(path="/api/generate", body={"prompt": "Hi", "stream": False}),
    ),
    open_paths=("/health", "/health_generate", "/ready", "/metrics"),
    admin_paths=("/hicache/storage-backend", "/list_external_corpora"),
    thinking_hint="see whether --reasoning-parser knows the model's thinking tags",
    repeatable=repeatable,
    requests=(Reading(path="/v1/loads", read=in_flight), Reading(path="/metrics", read=running)),
    token_counters=Reading(
        path="/metrics", read=lambda page: samples(page, r"sglang:(?:prompt|generation)_tokens_total")
    ),
    vision=Reading(path="/model_info", read=sees),
    metrics_hint="SGLang needs --enable-metrics",
    weight_files=weight_files,
    no_mmap_hint="have SGLang read its weights without mapping them: --weight-loader-disable-mmap",
    io_uring_hint='have SGLang run on asyncio\'s own event loop instead of uvloop: Sglang(event_loop="asyncio")',
    gpu_memory_hint=partial(
        shares_gpu_memory, ranks=("--tp-size", "--tensor-parallel-size", "--tp"), own="--enable-memory-saver"
    ),
    out_of_memory=OUT_OF_MEMORY,
)
"""How SGLang speaks. It has no route that tells whether its memory is released."""
