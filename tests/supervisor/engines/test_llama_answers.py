"""How llama-server's answers, log lines and counters are read."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.engines.llama_cpp import accept, parse_line
from supervisor.engines.llama_cpp.dialect import COUNTERS, READY


@pytest.mark.parametrize(
    ("status", "body", "why"),
    [
        (200, '{"status":"ok"}', None),
        (200, '{"status":"ok","slots_idle":1}', None),
        (503, '{"error":{"message":"Loading model","type":"unavailable_error","code":503}}', "Loading model"),
        (503, '{"status":"ok"}', 'HTTP 503: {"status":"ok"}'),
        (200, '{"error":{"message":"Loading model"}}', "Loading model"),
        (200, '{"status":"loading"}', 'HTTP 200: {"status":"loading"}'),
        (200, "OK", "HTTP 200: OK"),
        (200, "[]", "HTTP 200: []"),
        (200, "", "HTTP 200: empty body"),
        (502, "<h1>Bad\n gateway</h1>", "HTTP 502: <h1>Bad gateway</h1>"),
        (500, '{"error":"text"}', 'HTTP 500: {"error":"text"}'),
        (500, '{"error":{"message":""}}', 'HTTP 500: {"error":{"message":""}}'),
    ],
)
def test_accept(status: int, body: str, why: str | None) -> None:
    """Only 200 with status ok is up; anything else says why not in a few words."""
    assert accept(status, body) == why


@given(st.integers(100, 599), st.text() | st.recursive(st.none() | st.text(), st.lists).map(json.dumps))
def test_accept_survives_anything(status: int, body: str) -> None:
    """No answer of a server makes the judgement raise, or pass without the word ok, or speak at length."""
    why = accept(status, body)
    assert (why is None and "ok" in body) or (why and len(why) < 250)


@pytest.mark.parametrize(
    ("line", "level", "text"),
    [
        ("0.00.005.647 I srv  init: x", "info", "srv  init: x"),
        ("12.34.005.647 W load: odd", "warning", "load: odd"),
        ("0.00.005.647 E failed", "error", "failed"),
        ("0.00.005.647 D detail", "debug", "detail"),
        ("0.00.005.647 T detail", "debug", "detail"),
        ("I am no prefix", "info", "I am no prefix"),
        ("error: invalid argument: --no-mmap", "error", "error: invalid argument: --no-mmap"),
        (r'{"type":"log","time":3386,"level":"warn","msg":"srv  init: careful\n"}', "warning", "srv  init: careful"),
        ("", "info", ""),
    ],
)
def test_parse_line(line: str, level: str, text: str) -> None:
    """The letter after the time stamp is the level; JSON lines carry their own."""
    assert parse_line(line) == (level, text)


@pytest.mark.parametrize(
    "line",
    [
        "main: server is listening on http://127.0.0.1:8080 - starting the main loop",
        "0.02.118.764 I srv          init: listening on http://127.0.0.1:8765",
        "0.02.118.748 I srv          init: model loaded",
        "srv  update_slots: all slots are idle",
    ],
)
def test_ready_hint(line: str) -> None:
    """Old and new wordings of being ready are hints to probe at once."""
    assert re.search(READY, line)


def test_counters_move_with_work() -> None:
    """The pattern picks the three counters of work and no gauge."""
    metrics = "# TYPE llamacpp:prompt_tokens_total counter\nllamacpp:prompt_tokens_total 5\n"
    metrics += "llamacpp:n_decode_total 9\nllamacpp:tokens_predicted_total 1e3\nllamacpp:requests_processing 1\n"
    assert re.findall(COUNTERS, metrics) == [
        "llamacpp:prompt_tokens_total 5",
        "llamacpp:n_decode_total 9",
        "llamacpp:tokens_predicted_total 1e3",
    ]
