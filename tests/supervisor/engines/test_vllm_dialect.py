"""vLLM's dialect against what vLLM 0.32.0 really said (tests/testdata/vllm)."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from supervisor.dialect import Dialect, Reading
from supervisor.engines import catalogue
from supervisor.engines.vllm import VLLM, parse_line
from supervisor.engines.vllm.dialect import COUNTERS, OUT_OF_MEMORY, READY, VITAL, sleeping
from supervisor.engines.vllm.guard.warmboot_vllm_guard import OPEN
from supervisor.engines.vllm.server import GRACE_S, TAIL_ERRORS
from supervisor.engines.vllm.weights import cached, weight_files
from supervisor.profile import Health, Profile, Stop
from tools.transcripts import TESTDATA, Exchange, exchange

LOGS = ("engine", "engine-core-killed", "worker-error", "parallel-size", "unknown-flag")


def said(name: str) -> Exchange:
    return exchange("vllm", name)


def log(name: str) -> list[str]:
    return (TESTDATA / "vllm" / f"{name}.log").read_text(encoding="utf-8").splitlines()


def errors(name: str) -> list[str]:
    """The error lines of a log, as they are shown."""
    return [text for level, text in map(parse_line, log(name)) if level == "error"]


def value(reading: Reading[object] | None, name: str) -> object:
    """What the dialect reads out of a captured answer of the route that it names."""
    assert reading
    answer = said(name)
    assert (answer.method, answer.path, answer.status) == ("GET", reading.path, 200)
    return reading.read(answer.body)


def test_models() -> None:
    """The served name is in the list, which is vLLM's."""
    assert value(VLLM.models, "models") == ("tiny",)
    assert json.loads(said("models").body)["data"][0]["owned_by"] == VLLM.owned_by


def test_health_says_nothing_about_sleep() -> None:
    """It is green while the engine sleeps; the gauge tells, and so does the route that asks the engine."""
    assert (said("health").status, said("health-asleep").status, said("health-dead").status) == (200, 200, 503)
    names = ("metrics-fresh", "metrics", "metrics-busy", "metrics-asleep")
    assert [value(VLLM.asleep, name) for name in names] == [False, False, False, True]
    assert [sleeping(said(name).body) for name in ("is-sleeping", "is-sleeping-asleep")] == [False, True]


def test_requests_in_flight() -> None:
    """An idle engine has none, a busy one its one; the gauges of reasons are not counted twice."""
    (reading,) = VLLM.requests
    assert [value(reading, name) for name in ("metrics", "metrics-busy", "metrics-asleep")] == [0, 1, 0]


def test_token_counters() -> None:
    """Tokens are counted from zero; the watchdog's pattern finds the same two counters."""
    fresh, later = value(VLLM.token_counters, "metrics-fresh"), value(VLLM.token_counters, "metrics")
    assert fresh == {"vllm:prompt_tokens_total": 0.0, "vllm:generation_tokens_total": 0.0}
    assert isinstance(later, dict)
    assert all(later.values())
    found = [re.findall(COUNTERS, said(name).body) for name in ("metrics-fresh", "metrics")]
    assert [len(lines) for lines in found] == [2, 2]
    assert found[0] != found[1]


@pytest.mark.parametrize("body", ["", "[]", "{}", "null", '{"is_sleeping": 1}', "vllm:engine_sleep_state{} 1"])
def test_answers_that_do_not_tell(body: str) -> None:
    """An answer of another shape tells nothing, and raises nothing."""
    readings = (VLLM.models, *VLLM.requests, VLLM.token_counters, VLLM.asleep)
    assert not any(reading and reading.read(body) for reading in readings)
    assert sleeping(body) is None


def test_what_vllms_own_key_leaves_open() -> None:
    """The real server generated for a stranger on /invocations, which the dialect therefore lists."""
    hole = said("invocations-without-key")
    assert (hole.path, hole.status) == ("/invocations", 200)
    assert json.loads(hole.body)["choices"][0]["message"]["role"] == "assistant"
    assert (said("chat-without-key").status, said("models-refused").status) == (401, 401)
    assert said("tokenize-without-key").status == said("load").status == 200
    assert "/invocations" in [request.path for request in VLLM.generating]
    assert VLLM.admin_paths == ("/is_sleeping",)
    assert said("is-sleeping").status == 200
    assert set(VLLM.open_paths) == OPEN


def test_an_answer_with_log_probabilities() -> None:
    """A chat that asks for log-probabilities gives a token a row; thoughts have a field of their own."""
    answer = said("chat")
    choice = json.loads(answer.body)["choices"][0]
    rows = choice["logprobs"]["content"]
    assert answer.path == VLLM.chat_path
    assert len(rows) == 8
    assert all(-20 < row["logprob"] < 0 for row in rows)
    assert set(VLLM.thoughts) & set(choice["message"])


def test_fields_of_requests() -> None:
    """A repeatable request has another salt each time; a budget of thought is a number, or is not given."""
    one, other = VLLM.repeatable(7), VLLM.repeatable(7)
    assert {**one, "cache_salt": ""} == {"temperature": 0, "seed": 7, "top_k": 1, "cache_salt": ""}
    assert one["cache_salt"] != other["cache_salt"]
    assert VLLM.thinking_budget
    assert [VLLM.thinking_budget(tokens) for tokens in (0, None)] == [{"thinking_token_budget": 0}, {}]


def test_log_lines() -> None:
    """Levels are the engine's own, stamps are gone, and a process other than the API server's is named."""
    read = [parse_line(line) for line in log("engine")]
    assert ("info", "Using max model len 1024") in read
    assert ("warning", "Worker: sleep mode is not supported on CPU, ignore it.") in read
    assert [text for level, text in read if re.fullmatch(r"EngineCore: It took \S+ seconds to fall asleep\.", text)]
    assert [text for level, text in read if level == "warning" and text.startswith("Warning: NUMA binding")]
    assert not [text for _, text in read if re.search(r"pid=\d+\) |\d\d-\d\d \d\d:\d\d:\d\d \[", text)]
    assert Counter(level for level, _ in read).keys() == {"info", "warning", "error"}
    assert parse_line("(EngineCore_DP0 pid=7) CRITICAL 11-21 14:42:37 x") == ("error", "EngineCore_DP0: x")
    assert parse_line("DEBUG 11-21 14:42:37 [a.py:1] x") == ("debug", "x")
    assert parse_line('{"level": "warn", "msg": "x"}') == ("warning", "x")
    assert parse_line("") == ("info", "")


def test_the_ready_line_comes_once_the_engine_is_there() -> None:
    """uvicorn's line is the first that matches, after the engine's last word of its start."""
    ready = [number for number, line in enumerate(log("engine")) if re.search(READY, line)]
    engine = [number for number, line in enumerate(log("engine")) if "init engine" in line]
    assert len(ready) == 1
    assert engine[0] < ready[0]


def test_the_cause_is_among_the_last_errors() -> None:
    """Of a hundred frames and seventy lines of noise, the few lines of level error that a report keeps tell why."""
    assert len(log("worker-error")) > 300
    kept = errors("worker-error")[-TAIL_ERRORS:]
    assert any("Worker: RuntimeError: Unsupported CPU attention configuration: head_dim=16" in text for text in kept)
    assert any("EngineDeadError" in text for text in errors("engine-core-killed")[-TAIL_ERRORS:])
    assert errors("parallel-size")[-1].strip().startswith("Value error, Total number of attention heads (4) must be")
    assert errors("unknown-flag") == ["vllm: error: unrecognized arguments: --no-such-flag 3"]


def test_out_of_memory() -> None:
    """The words of a failed allocation stand in no log of another failure."""
    assert not [name for name in LOGS if VLLM.allocation_failure(log(name))]
    assert Dialect().allocation_failure(["CUDA out of memory"]) is None


@pytest.mark.parametrize(
    ("line", "is_out"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity", True),
        ("ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`", True),
        ("8.0 GiB KV cache is needed, which is larger than the available KV cache memory (1.0 GiB).", True),
        ("ValueError: Free memory on device cuda:0 (1.0/80.0 GiB) on startup is less than desired GPU memory", True),
        ("RuntimeError: [enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory", True),
        ("INFO GPU KV cache size: 4,194,304 tokens", False),
    ],
)  # fmt: skip
def test_words_of_a_failed_allocation(line: str, is_out: bool) -> None:
    """vLLM's and torch's words for it (read in 0.32.0: v1/core/kv_cache_utils.py, v1/worker/utils.py)."""
    assert bool(re.search(OUT_OF_MEMORY, line)) is is_out


@pytest.mark.parametrize("title", ["VLLM::EngineCore", "VLLM::EngineCore_DP0", "VLLM::Worker", "VLLM::Worker_PP0_TP1"])
def test_titles_of_the_engines_processes(title: str) -> None:
    """Each process whose end is the end of the engine is known by its title; the front's name is not among them."""
    assert any(re.search(pattern, title) for pattern in VITAL)
    assert not any(re.search(pattern, "/venv/bin/python /venv/bin/vllm serve VLLM") for pattern in VITAL)


def test_weight_files(tmp_path: Path) -> None:
    """All shards of a directory; PyTorch's own format where there are none; nothing for an id of a hub."""
    assert weight_files(Path("Qwen/Qwen3-8B")) == ()
    (tmp_path / "pytorch_model.bin").touch()
    assert weight_files(tmp_path) == (tmp_path / "pytorch_model.bin",)
    (tmp_path / "model.safetensors").touch()
    assert weight_files(tmp_path) == (tmp_path / "model.safetensors",)


def test_weights_of_a_hubs_cache(tmp_path: Path) -> None:
    """A model that is given by its id is read from the cache, wherever the child's variables put that."""
    snapshot = tmp_path / "hub" / "models--Qwen--Qwen3-8B" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    refs = tmp_path / "hub" / "models--Qwen--Qwen3-8B" / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc\n")
    for env in ({"HF_HOME": str(tmp_path)}, {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HOME": "/x"}):
        assert cached("Qwen/Qwen3-8B", env) == snapshot
    assert cached("Qwen/Qwen3-8B", {"HOME": str(tmp_path)}) is None
    home = tmp_path / "home" / ".cache"
    home.mkdir(parents=True)
    (home / "huggingface").symlink_to(tmp_path)
    found = cached("Qwen/Qwen3-8B", {"HOME": str(tmp_path / "home")})
    assert found
    assert found.resolve() == snapshot.resolve()


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("vllm serve Qwen/Qwen3-8B --port 8000", "vllm"),
        ("nice -n 5 /opt/venv/bin/vllm serve x", "vllm"),
        ("python3 -m vllm.entrypoints.openai.api_server --model x", "vllm"),
        ("python -m vllm.entrypoints.cli.main serve x", "vllm"),
        ("vllm bench serve", "plain"),
        ("python -m vllm.entrypoints.grpc_server", "plain"),
        ("./serve vllm", "plain"),
    ],
)
def test_the_command_tells_the_engine(command: str, name: str) -> None:
    """The engine is guessed from the command that starts its server, and from no other of its commands."""
    assert catalogue.guess(command.split()).name == name


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("vllm serve Qwen/Qwen3-8B --port 1", "Qwen/Qwen3-8B"),
        ("vllm serve /models/q --served-model-name small other", "small"),
        ("vllm serve --served-model-name=small /models/q", "small"),
        ("python -m vllm.entrypoints.openai.api_server --model /models/q", "/models/q"),
        ("vllm serve --config x.yaml", None),
    ],
)
def test_the_command_tells_the_name_of_the_model(
    command: str, name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM answers 404 to another name, so that warmups, golden answers and the line to try must use this one."""
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    plain = Profile(name="x", command=tuple(command.split()), port=1)
    kind = catalogue.named("vllm")
    assert kind.adopt(plain).health.model_id == name
    assert kind.adopt(replace(plain, health=Health(model_id="mine"))).health.model_id == "mine"
    # A list of models that refuses us tells nothing.
    assert kind.adopt(replace(plain, env={"VLLM_API_KEY": "k"})).health.model_id is None


def test_a_bare_command_is_adopted() -> None:
    """What was chosen stays; the rest becomes vLLM's."""
    kind = catalogue.named("vllm")
    plain = kind.adopt(Profile(name="x", command=("vllm", "serve", "m", "--port", "{port}")))
    assert (plain.dialect, plain.vital, plain.logs.parse) == (VLLM, VITAL, parse_line)
    assert (plain.stop.grace_s, plain.health.ready_pattern, plain.api_key_env) == (GRACE_S, READY, "VLLM_API_KEY")
    assert plain.liveness.counters_path == "/metrics"
    chosen = replace(plain, stop=Stop(grace_s=3))
    assert kind.adopt(chosen).stop.grace_s == 3
    assert [step.name for step in kind.hooks(plain).warmup] == ["vllm-closed-routes"]
