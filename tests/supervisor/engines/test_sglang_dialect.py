"""SGLang's dialect against what SGLang 0.5.23 really said (tests/testdata/sglang)."""

from __future__ import annotations

import json
import re

import pytest

from hooks.golden.generation import Generation
from hooks.http.answer import Answer
from supervisor.dialect import Reading
from supervisor.engines.sglang.dialect import COUNTERS, READY, SGLANG, in_flight, parse_line, running
from supervisor.profile import accept_2xx
from supervisor.redact import Redactor
from tools.transcripts import TESTDATA, Exchange, exchange


def said(name: str) -> Exchange:
    return exchange("sglang", name)


def log(name: str) -> list[str]:
    return (TESTDATA / "sglang" / f"{name}.log").read_text(encoding="utf-8").splitlines()


def value(reading: Reading[object] | None, name: str) -> object:
    """What the dialect reads out of a captured answer of the route that it names."""
    assert reading
    answer = said(name)
    assert (answer.method, answer.path, answer.status) == ("GET", reading.path, 200)
    return reading.read(answer.body)


def test_health() -> None:
    """It is up by its status alone: 503 until its warmup is done, though it lists its models long before."""
    starting, up = said("health-starting"), said("health")
    assert accept_2xx(starting.status, starting.body) == "HTTP 503: empty body"
    assert accept_2xx(up.status, up.body) is None


def test_models() -> None:
    """Its list names the model and its owner."""
    assert value(SGLANG.models, "models") == ("tiny",)
    assert json.loads(said("models").body)["data"][0]["owned_by"] == SGLANG.owned_by


def test_requests_are_counted_by_either_route() -> None:
    """An idle engine has none, by its loads and by its gauges."""
    assert [value(reading, name) for reading, name in zip(SGLANG.requests, ("loads", "metrics"), strict=True)] == [0, 0]
    two = [{"num_running_reqs": 2, "num_waiting_reqs": 1}, {"num_running_reqs": 0, "num_waiting_reqs": 4}]
    assert in_flight(json.dumps({"loads": two})) == 7
    assert running('sglang:num_running_reqs{dp="0"} 2.0\nsglang:num_queue_reqs{dp="0"} 1.0\n') == 3


@pytest.mark.parametrize(
    "body", ["", "[]", "{}", '{"loads": []}', '{"loads": [{"num_running_reqs": "1"}]}', "[" * 9999]
)
def test_what_is_no_load_tells_nothing(body: str) -> None:
    """Another body is no idle engine."""
    assert in_flight(body) is None
    assert running(body) is None


def test_counters_prove_traffic() -> None:
    """Both counters are found with their labels, by the dialect and by the watchdog's pattern."""
    counters = value(SGLANG.token_counters, "metrics")
    assert isinstance(counters, dict)
    assert set(counters) == {"sglang:prompt_tokens_total", "sglang:generation_tokens_total"}
    assert min(counters.values()) > 0
    assert len(re.findall(COUNTERS, said("metrics").body)) == len(counters)


def test_vision_is_told() -> None:
    """The tiny model takes no pictures."""
    assert value(SGLANG.vision, "model-info") is False


def test_a_golden_answer_is_read() -> None:
    """A captured chat has tokens with log-probabilities and bytes."""
    answer = said("chat")
    redact = Redactor(())
    read = Generation.read(Answer(status=200, body=answer.body, redact=redact, whole=True, dialect=SGLANG))
    assert len(read.tokens) == 8
    assert all(token.logprob < 0 and token.raw for token in read.tokens)


def test_each_repeatable_request_has_a_salt_of_its_own() -> None:
    """Two equal questions share no prefix in the radix cache (seen: `#cached-token: 0` with a salt, 42 without)."""
    one, other = SGLANG.repeatable(1), SGLANG.repeatable(1)
    assert one["cache_salt"] != other["cache_salt"]
    assert {**one, "cache_salt": ""} == {**other, "cache_salt": ""}


def test_the_administration_refuses_clients_and_strangers() -> None:
    """With a key of its own, a route that stands for the administration refuses the clients' key too."""
    assert said("storage-backend").path in SGLANG.admin_paths
    assert (said("storage-backend").status, said("storage-backend-refused").status) == (200, 401)
    assert said("refused").status == 401


def test_the_server_shows_its_keys_to_its_clients() -> None:
    """The clients' key opens `/server_info`, which holds the key of the administration: so no open server has one."""
    info = json.loads(said("server-info").body)
    assert (info["api_key"], info["admin_api_key"]) == ("sk-made-up-for-tests", "sk-made-up-for-admins")
    assert any("sk-made-up-for-admins" in line for line in log("engine"))  # our own log masks it


def test_release_wants_a_body() -> None:
    """A release without a body is refused, one with `{}` is not."""
    assert (said("release-without-body").status, said("release").status, said("resume").status) == (400, 200, 200)


def test_a_paused_engine_is_not_ready_but_healthy() -> None:
    """`/ready` is 503 while generation is paused, so that it is no health path for an engine that sleeps."""
    assert (said("pause").status, said("paused-ready").status) == (200, 503)


def test_the_ready_line_comes_once() -> None:
    """The last line before it can serve is the ready line."""
    assert len([line for line in log("engine") if re.search(READY, line)]) == 1


@pytest.mark.parametrize(
    ("line", "level", "text"),
    [
        ("[2026-11-21 20:19:59] Init parallel begin.", "info", "Init parallel begin."),
        ("[2026-11-21 20:19:59 TP0] Load weight end.", "info", "Load weight end."),
        ('[2026-11-21 20:20:10] INFO:     1.2.3.4:5 - "GET /health"', "info", '1.2.3.4:5 - "GET /health"'),
        ("[2026-11-21 20:20:10] ERROR:    Exception in ASGI application", "error", "Exception in ASGI application"),
        ("INFO:     Started server process [7]", "info", "Started server process [7]"),
        ("KeyError: 'kv_cache'", "error", "KeyError: 'kv_cache'"),
        ("torch.OutOfMemoryError: CUDA out of memory.", "error", "torch.OutOfMemoryError: CUDA out of memory."),
        ('{"level": "warning", "msg": "m"}', "warning", "m"),
        ("anything", "info", "anything"),
    ],
)
def test_log_lines(line: str, level: str, text: str) -> None:
    """The time stamp goes; SGLang writes no level, so that words of alarm tell it."""
    assert parse_line(line) == (level, text)


def test_a_crash_shows_its_error() -> None:
    """After a second resume, the lines that say what happened count as errors, and the noise of the end does not."""
    errors = [text for level, text in map(parse_line, log("second-resume")) if level == "error"]
    assert errors[0].startswith("Scheduler hit an exception")
    assert "KeyError: 'kv_cache'" in errors
    assert any(text.startswith("SIGQUIT received") for text in errors)
    assert len(errors) <= 4


def test_no_start_looks_like_a_failed_allocation() -> None:
    """The words of a failed allocation stand in no healthy log."""
    assert SGLANG.allocation_failure(log("engine")) is None
    failed = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
    assert SGLANG.allocation_failure([*log("engine"), failed]) == failed
