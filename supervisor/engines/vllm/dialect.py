"""How vLLM's API server speaks: routes, log lines, gauges, counters, names of processes and files. Pure.

Read in vLLM 0.32.0, and tested against what that version answered (see tests/testdata/vllm).
"""

from __future__ import annotations

import json
import math
import re
import secrets
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from supervisor.dialect import Dialect, Fields, Reading, Request, samples, seeded
from supervisor.engines.settings import shares_gpu_memory
from supervisor.engines.vllm.weights import weight_files
from supervisor.levels import LEVELS, plain_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    from supervisor.events import Level

__all__ = ["COUNTERS", "OUT_OF_MEMORY", "READY", "VITAL", "VLLM", "parse_line"]

READY: Final = r"Application startup complete"
"""uvicorn says it once vLLM's engine has loaded and its routes are served; the port opens a moment later."""

COUNTERS: Final = r"(?m)^vllm:(?:prompt|generation)_tokens_total\S* +\S+"

VITAL: Final = (r"^VLLM::EngineCore", r"^VLLM::Worker")
"""Titles that the processes of the engine give themselves (seen: `VLLM::EngineCore`, `VLLM::Worker_TP1`).

When one of them dies, the API server goes on for up to 5 s, and then ends with exit code 0 (seen in 0.32.0).
"""

OUT_OF_MEMORY: Final = (
    r"(?:CUDA|HIP|XPU) out of memory|OutOfMemoryError|CUDA error: out of memory|std::bad_alloc|DefaultCPUAllocator: "
    r"can't allocate|No available memory for the cache blocks|larger than the available KV cache memory"
    r"|Free memory on device \S+ .*is less than desired"
)
"""What the log says when weights, KV cache or compute buffers found no room, on a GPU or in RAM."""

# (EngineCore pid=17) INFO 11-21 14:42:37 [core.py:101] text; also without process, and uvicorn's `INFO:     text`.
_PROCESS: Final = r"(?:\((?P<process>\S+) pid=\d+\) ?)?"
_LEVEL: Final = "DEBUG|INFO|WARNING|ERROR|CRITICAL"
_LOG_LINE: Final = re.compile(
    rf"^{_PROCESS}(?:(?P<level>{_LEVEL})(?: \d\d-\d\d \d\d:\d\d:\d\d(?:\.\d+)? (?:\[\S+\] ?)?|: {{2,}}))?(?P<text>.*)$",
    re.DOTALL,
)
# [W1121 20:10:59.599939263 utils.cpp:68] text
_TORCH_LINE: Final = re.compile(r"^\[([DIWEF])\d{4} \d\d:\d\d:\d\d\.\d+ [^\s\]]+\] ?(.*)$", re.DOTALL)
_LETTERS: Final[dict[str, Level]] = {"D": "debug", "I": "info", "W": "warning", "E": "error", "F": "error"}
_RAISED: Final = re.compile(
    r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit)(?:: |$)|^[\w ]+: error: |^  Value error, "
)
_FRAME: Final = re.compile(r"^(?:\s|$|Traceback \(most recent call last\)|During handling of|The above exception)")
_API_SERVER: Final = "APIServer"


def parse_line(line: str) -> tuple[Level, str]:
    """Read `(EngineCore pid=17) INFO 11-21 14:42:37 [core.py:101] text` as info and `EngineCore: text`.

    The API server's own name goes, being the one that most lines carry. Of a traceback, the line that names the
    exception is an error, also where it carries no level, and its frames are info, though vLLM calls all of them
    errors: a dead worker is told by three processes in a hundred frames each, and an error report keeps few lines.
    """
    if found := _TORCH_LINE.match(line):
        return _LETTERS[found[1]], found[2]
    match = _LOG_LINE.match(line)
    if match is None or not (match["process"] or match["level"]):
        level, text = plain_line(line)
        return ("error" if level == "info" and _RAISED.match(text) else level), text
    text, process = match["text"], match["process"]
    level = LEVELS.get(match["level"].lower(), "info") if match["level"] else "info"
    if level == "error" and _FRAME.match(text):
        level = "info"
    elif level == "info" and _RAISED.match(text):
        level = "error"
    named = process is not None and process.partition("_")[0] != _API_SERVER
    return level, f"{process}: {text}" if named else text


def repeatable(seed: int) -> Fields:
    """Return the fields of a greedy request that is computed anew each time.

    The salt is another one at each call, so that no block of the prefix cache is found: a prompt that is partly cached
    is computed in other batches, and the log-probabilities differ in their last bits.
    """
    return {**seeded(seed), "top_k": 1, "cache_salt": secrets.token_urlsafe(24)}


def thinking_budget(tokens: int | None) -> Fields:
    """Return the field that limits a chat's thoughts; without it there is no limit."""
    return {} if tokens is None else {"thinking_token_budget": tokens}


def in_flight(page: str) -> int | None:
    """Count the requests that run or wait, by the gauges of `/metrics`; None when the page has none of them."""
    values = samples(page, "vllm:num_requests_(?:running|waiting)")
    return math.ceil(sum(values.values())) if values else None


def tokens(page: str) -> Mapping[str, float] | None:
    """Return the counters of the tokens of prompts and answers."""
    return samples(page, "vllm:(?:prompt|generation)_tokens_total")


def asleep(page: str) -> bool | None:
    """Tell from the gauges of `/metrics` whether an engine is not awake; None when the page does not say."""
    awake = re.findall(r'(?m)^vllm:engine_sleep_state\{[^\n]*sleep_state="awake"[^\n]*\}[ \t]+(\S+)', page)
    try:
        return any(float(value) == 0 for value in awake) if awake else None
    except ValueError:
        return None


def sleeping(body: str) -> bool | None:
    """Read the answer of `/is_sleeping`; None: it is of another shape."""
    try:
        said: Any = json.loads(body)
    except (ValueError, RecursionError):
        return None
    value = said.get("is_sleeping") if isinstance(said, dict) else None
    return value if isinstance(value, bool) else None


_HI: Final = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
_PROMPT: Final = {"prompt": "Hi", "max_tokens": 1}

VLLM: Final = Dialect(
    engine="vllm",
    owned_by="vllm",
    generating=(
        Request(path="/v1/chat/completions", body=_HI),
        Request(path="/v1/completions", body=_PROMPT),
        Request(path="/v1/responses", body={"input": "Hi", "max_output_tokens": 16}),
        Request(path="/v1/messages", body=_HI),
        Request(path="/v1/embeddings", body={"input": "Hi"}),
        Request(path="/inference/v1/generate", body={"token_ids": [1], "sampling_params": {"max_tokens": 1}}),
        Request(path="/invocations", body=_HI),
        Request(path="/pooling", body={"input": "Hi"}),
    ),
    open_paths=("/health", "/metrics", "/ping", "/version"),
    admin_paths=("/is_sleeping",),
    thinking_budget=thinking_budget,
    thinking_hint="thinking_token_budget needs a reasoning parser that knows the model's thinking tags: "
    "--reasoning-parser",
    repeatable=repeatable,
    requests=(Reading(path="/metrics", read=in_flight),),
    token_counters=Reading(path="/metrics", read=tokens),
    asleep=Reading(path="/metrics", read=asleep),
    metrics_hint="vllm serve must not be started with --disable-log-stats, which takes the counters away",
    weight_files=weight_files,
    no_mmap_hint="have vLLM read its weights: --safetensors-load-strategy eager, or --load-format with another loader",
    io_uring_hint='have vLLM run on asyncio\'s own event loop instead of uvloop: Vllm(event_loop="asyncio")',
    gpu_memory_hint=partial(shares_gpu_memory, ranks=("--tensor-parallel-size", "-tp"), own="--enable-sleep-mode"),
    out_of_memory=OUT_OF_MEMORY,
)
"""How vLLM speaks; `open_paths` are those of a server without our guard."""
