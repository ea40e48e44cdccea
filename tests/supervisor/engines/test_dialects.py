"""Each dialect against what its engine really said (tests/testdata, captured by tests/tools/transcripts.py)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from supervisor import Daemon
from supervisor.dialect import Dialect, Reading
from supervisor.engines import PlainServer, embedded
from supervisor.engines.embedded.program import FLAGS
from supervisor.engines.help_flags import listed
from supervisor.engines.llama_cpp import LLAMA_CPP
from supervisor.errors import DiedBeforeReady
from supervisor.profile import Profile
from tools.transcripts import TESTDATA, Exchange, exchange

LOG_NAMES = ("engine", "out-of-memory", "no-model")


@pytest.fixture(scope="module")
def profile() -> Profile:
    return embedded.profile()


@pytest.fixture(params=["embedded", "llama_cpp"])
def dialect(request: pytest.FixtureRequest) -> Dialect:
    """Both speak as llama.cpp's server does, because both are it."""
    return {"embedded": embedded.EMBEDDED, "llama_cpp": LLAMA_CPP}[request.param]


def said(name: str) -> Exchange:
    return exchange("embedded", name)


def log(name: str) -> list[str]:
    return (TESTDATA / "embedded" / f"{name}.log").read_text(encoding="utf-8").splitlines()


def value(reading: Reading[object] | None, name: str) -> object:
    """What a dialect reads out of a captured answer of the route that it names."""
    assert reading
    answer = said(name)
    assert (answer.method, answer.path, answer.status) == ("GET", reading.path, 200)
    return reading.read(answer.body)


def test_models(dialect: Dialect) -> None:
    """The name that clients use is in the list once, though the engine repeats it as its own alias."""
    assert value(dialect.models, "models") == ("gemma-3-270m",)
    assert json.loads(said("models").body)["data"][0]["owned_by"] == dialect.owned_by


def test_health(profile: Profile) -> None:
    """While it loads it is not up, for the reason that the dialect calls loading; then it is."""
    loading, up = said("health-loading"), said("health")
    assert (loading.status, up.status) == (503, 200)
    assert profile.health.accept(loading.status, loading.body) == profile.dialect.loading == "Loading model"
    assert profile.health.accept(up.status, up.body) is None


def test_requests_in_flight(dialect: Dialect) -> None:
    """Both readings count no request of an idle engine and the one of a busy engine."""
    metrics, slots = dialect.requests
    assert [value(slots, name) for name in ("slots", "slots-busy")] == [0, 1]
    assert [value(metrics, name) for name in ("metrics", "metrics-busy")] == [0, 1]
    assert slots.read(said("metrics").body) is metrics.read(said("slots").body) is None


def test_token_counters(dialect: Dialect) -> None:
    """Tokens of prompts and answers are counted from zero, and no seconds are taken for tokens."""
    assert dialect.token_counters
    fresh, later = (dialect.token_counters.read(said(name).body) for name in ("metrics-fresh", "metrics"))
    assert fresh
    assert later
    assert set(fresh.values()) == {0.0}
    grown = {name for name in later if later[name] > fresh[name]}
    assert grown >= {"llamacpp:prompt_tokens_total", "llamacpp:tokens_predicted_total"}
    assert not [name for name in later if "seconds" in name]


def test_the_watchdogs_counters(profile: Profile) -> None:
    """What the profile's pattern finds on the metrics page changes with work."""
    pattern = profile.liveness.counters_pattern or ""
    assert re.findall(pattern, said("metrics-fresh").body) != re.findall(pattern, said("metrics").body)
    assert len(re.findall(pattern, said("metrics").body)) == 3


def test_properties(dialect: Dialect) -> None:
    """The embedded profile has two slots, and its model takes no pictures."""
    assert value(dialect.slots, "props") == 2
    assert value(dialect.vision, "props") is False
    assert value(dialect.asleep, "props") is False


@pytest.mark.parametrize("body", ["", "[]", "{}", "null", '{"total_slots": true}', '[{"id": 0}]', '{"modalities": 1}'])
def test_answers_that_do_not_tell(dialect: Dialect, body: str) -> None:
    """An answer of another shape tells nothing, and raises nothing."""
    readings = (dialect.models, *dialect.requests, dialect.token_counters, dialect.slots, dialect.vision)
    readings = (*readings, dialect.asleep)
    assert all(reading and not reading.read(body) for reading in readings)


def test_every_generating_route_wants_the_key(dialect: Dialect) -> None:
    """The real engine refuses each request that the dialect calls generating; a chat is among them."""
    refused = json.loads((TESTDATA / "embedded" / "without-key.json").read_text(encoding="utf-8"))
    assert {request.path: refused[request.path] for request in dialect.generating} == dict.fromkeys(refused, 401)
    assert dialect.chat_path in refused


def test_an_answer_with_log_probabilities(dialect: Dialect) -> None:
    """A chat that asks for log-probabilities gives a token a row, with bytes and a number that is not above zero."""
    answer = said("chat")
    assert (answer.path, answer.status) == (dialect.chat_path, 200)
    choice = json.loads(answer.body)["choices"][0]
    rows = choice["logprobs"]["content"]
    assert "".join(row["token"] for row in rows) == choice["message"]["content"]
    assert b"".join(bytes(row["bytes"]) for row in rows).decode() == choice["message"]["content"]
    assert all(row["logprob"] <= 0 for row in rows)


def test_the_example_of_the_embedded_model() -> None:
    """A base model is shown with a text that it continues; the answer has text."""
    example, answer = embedded.EMBEDDED.example, said("completion")
    assert example
    assert (example.path, answer.status) == (answer.path, 200)
    assert example.body["prompt"] == "The sea is"
    assert json.loads(answer.body)["choices"][0]["text"].strip()
    assert LLAMA_CPP.example is None


def test_log_lines(profile: Profile) -> None:
    """Levels are the engine's own, the stamp is gone from the text, and the ready hint comes when the load is over."""
    read = [profile.logs.parse(line) for line in log("engine")]
    assert ("info", "srv          init: loading model") in read
    assert ("warning", "srv    operator(): unauthorized: Invalid API Key") in read
    assert not [text for _, text in read if re.match(r"\d+\.\d\d\.", text)]
    pattern = re.compile(profile.health.ready_pattern or "")
    first = next(i for i, line in enumerate(log("engine")) if pattern.search(line))
    assert [text for _, text in read[: first + 1] if "model" in text][-1] == "srv          init: model loaded"
    failed = [profile.logs.parse(line) for line in log("no-model")]
    assert ("error", "srv          init: exiting due to model loading error") in failed


def test_out_of_memory(dialect: Dialect) -> None:
    """The words of a failed allocation stand in the log of one, and in no other."""
    words = re.compile(dialect.out_of_memory or "")
    assert [name for name in LOG_NAMES if any(map(words.search, log(name)))] == ["out-of-memory"]
    assert dialect.allocation_failure(log("engine")) is None
    assert Dialect().allocation_failure(log("out-of-memory")) is None


def test_an_engine_that_runs_out_of_memory_says_so() -> None:
    """The error of a start that failed for want of memory quotes the engine's line and says what to change."""
    path = TESTDATA / "embedded" / "out-of-memory.log"
    command = ("/bin/sh", "-c", f"cat {path} >&2; exit 1", "engine", "{port}")
    with pytest.raises(DiedBeforeReady) as caught:
        Daemon(Profile(name="engine", command=command, dialect=LLAMA_CPP)).__enter__()
    assert "insufficient memory (attempted to allocate 11719.50 MB)" in (caught.value.out_of_memory or "")
    assert "choose a smaller context" in str(caught.value)


@pytest.mark.parametrize(
    ("line", "is_out"),
    [
        ("alloc_buffer: allocating 9216.00 MiB on device 0: cudaMalloc failed: out of memory", True),
        ("alloc_tensor_range: failed to allocate CUDA0 buffer of size 9663676416", True),
        ("llama_model_load: error loading model: unable to allocate CUDA0 buffer", True),
        ("ggml_gallocr_reserve_n_impl: failed to allocate CUDA0 buffer of size 549453824", True),
        ("graph_reserve: failed to allocate compute buffers", True),
        ("CUDA error: out of memory", True),
        ("ggml_cuda_host_malloc: failed to allocate 128.00 MiB of pinned memory: out of memory", False),
        ("srv  load_model: loading model '/models/memory.gguf'", False),
    ],
)
def test_out_of_memory_on_a_gpu(line: str, is_out: bool) -> None:
    """CUDA's words for it, as llama.cpp prints them; pinned memory that is refused ends no load."""
    assert bool(re.search(LLAMA_CPP.out_of_memory or "", line)) is is_out


def test_help() -> None:
    """Every flag is found in the captured help text, and no other."""
    text = (TESTDATA / "embedded" / "help.txt").read_text(encoding="utf-8")
    assert listed(text) == {name for names, _, _ in FLAGS for name in names.split()}


def test_fields_of_requests(dialect: Dialect) -> None:
    """A repeatable request passes the prompt cache by; a budget of thought is a number, and -1 is no limit."""
    assert dialect.repeatable(7) == {"temperature": 0, "top_k": 1, "seed": 7, "cache_prompt": False}
    assert dialect.thinking_budget
    assert [dialect.thinking_budget(tokens) for tokens in (0, 32, None)] == [
        {"thinking_budget_tokens": tokens} for tokens in (0, 32, -1)
    ]
    assert dialect.thinking(False) == {"chat_template_kwargs": {"enable_thinking": False}}


def test_weight_files(dialect: Dialect) -> None:
    """The first shard stands for all of them."""
    files = dialect.weight_files(Path("/m/big-00001-of-00002.gguf"))
    assert [path.name for path in files] == ["big-00001-of-00002.gguf", "big-00002-of-00002.gguf"]


def test_profiles_carry_their_dialect(profile: Profile) -> None:
    """A profile has the dialect of its engine, and a plain server claims nothing beyond OpenAI's routes."""
    assert profile.dialect is embedded.EMBEDDED
    plain = PlainServer(command=("./server", "{port}"))
    assert plain.profile().dialect == plain.dialect == Dialect()
    assert (plain.profile().name, plain.hooks().before_start) == ("server", ())
    assert (plain.dialect.requests, plain.dialect.slots, plain.dialect.token_counters) == ((), None, None)
    assert [step.name for step in embedded.Embedded().hooks().before_start] == ["assemble-model"]
