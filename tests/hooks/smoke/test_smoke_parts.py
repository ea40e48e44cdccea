"""The parts of a smoke test: streams, options, endpoints, the report."""

from __future__ import annotations

import io
import json
import re
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from hooks.http.answer import Answer, BadAnswer
from hooks.http.endpoint import Endpoint, Exchange
from hooks.http.stream import _read
from hooks.smoke.report import Row, SmokeReport
from hooks.smoke.run import Options, smoke
from supervisor.dialect import Dialect
from supervisor.errors import ProfileError
from supervisor.redact import Redactor, Secret
from tools.serve import running_fake
from tools.smoke import endpoint_of, row_of


def events(*deltas: dict[str, Any], usage: int | None = None, end: str = "data: [DONE]\n\n") -> bytes:
    chunks: list[dict[str, Any]] = [{"choices": [{"delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    chunks += [{"choices": [], "usage": {"completion_tokens": usage}}] if usage else []
    return "".join(f"data: {json.dumps(chunk, ensure_ascii=False)}\r\n\r\n" for chunk in chunks).encode() + end.encode()


def read(*chunks: tuple[float, bytes]) -> Any:
    exchange = Exchange(what="POST /", began=10.0, status=200, chunks=list(chunks))
    body = b"".join(chunk for _, chunk in chunks).decode(errors="replace")
    return _read(Answer(status=200, body=body, redact=Redactor(())), exchange)


def test_times_of_a_stream() -> None:
    """The first text counts, thoughts too; an event belongs to the moment of its last byte, wherever it was cut."""
    body = events({"role": "assistant", "content": None}, {"reasoning_content": "hmm"}, {"content": "é"}, usage=9)
    cut = body.index("é".encode()) + 1
    thought = body.index(b"hmm")
    seen = read((10.5, body[:thought]), (11.0, body[thought:cut]), (13.0, body[cut:]))
    assert (seen.text, seen.tokens, seen.first_token_s, seen.took_s) == ("é", 9, 1.0, 3.0)
    assert seen.tokens_per_s == 4.0
    plain = read((11.0, events({"content": "a"}, {"content": "b"})))
    assert (plain.tokens, plain.tokens_per_s) == (2, None)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (events({"content": "a"}, end=""), r"ended without \[DONE\]"),
        (events({"content": "a"}).replace(b'"stop"', b"null"), "ended without a finish_reason"),
        (b'data: {"error": {"message": "out of memory"}}\n\n', "the answer is an error: out of memory"),
        (b'{"error": {"message": "no streams"}}', "the answer is an error: no streams"),
        (b'data: {"choices": [7]}\n\ndata: [DONE]\n\n', "the answer has no choices"),
        (b'data: {"choices": [{"delta": 7}]}\n\ndata: [DONE]\n\n', "the stream brought no text"),
        (b"", "not valid JSON"),
    ],
)
def test_streams_that_are_none(body: bytes, words: str) -> None:
    """A stream that breaks off, or brings an error or nothing, is no answer."""
    with pytest.raises(BadAnswer, match=words):
        read((11.0, body))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"skip": ("txt",)}, "skip='txt' is not valid: it must be among auth, model"),
        ({"only": ("auth",), "skip": ("auth",)}, "such that a check is left"),
        ({"only": ("wake",)}, "given together with an idle time"),
        ({"slots": 0}, "slots=0"),
        ({"deadline_s": float("nan")}, "deadline_s=nan"),
        ({"idle_s": -1.0}, "idle_s=-1"),
        ({"wake_limit_s": 1.0}, "wake_limit_s=1.0"),
        ({"health_path": "health"}, "health_path='health'"),
    ],
)
def test_options_that_make_no_sense(fields: dict[str, Any], words: str) -> None:
    """Wrong options are refused before anything is sent, naming field, value and what is allowed."""
    with pytest.raises(ProfileError, match=re.escape(words)):
        Options(**fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"url": "localhost:8080"}, "http://HOST or https://HOST"),
        ({"url": "http://"}, "http://HOST"),
        ({"url": "http://a:port"}, "http://HOST"),
        ({"url": "http://a?key=1"}, "without a query"),
        ({"url": "https://user:hunter2@a"}, "url='***'"),
        ({"url": "http://a", "api_key": Secret("schlüssel")}, "visible ASCII"),
        ({"url": "http://a", "api_key": Secret("k"), "open_access": True}, "open_access"),
        ({"url": "http://a", "timeout_s": 0}, "timeouts.step_s=0"),
        ({"url": "http://a", "model": " "}, "model_id"),
    ],
)
def test_endpoints_that_make_no_sense(fields: dict[str, Any], words: str) -> None:
    """A wrong URL, key or model is refused when the endpoint is made, without a password in the message."""
    with pytest.raises(ProfileError) as caught:
        Endpoint(**fields)
    assert words in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.anyio
async def test_what_is_skipped_says_why() -> None:
    """A skipped row tells which choice of the user's it was; nothing is asked for it."""
    with running_fake() as child:
        report = await smoke(endpoint_of(child), Options(only=("auth", "text"), skip=("text",)))
    assert report.ok
    assert row_of(report, "auth").outcome == "ok"
    assert row_of(report, "text").detail == "as asked (skip text)"
    assert row_of(report, "image").detail == "as asked (only auth, text)"
    assert not row_of(report, "image").evidence


@pytest.mark.anyio
async def test_an_engine_without_chats_is_not_asked_for_any() -> None:
    """What needs a chat is skipped with the engine's name, also where the user says how many slots there are."""
    painter = Dialect(engine="painter", chat_path=None, responses_path=None, images_path="/draw")
    with running_fake() as child:
        endpoint = replace(endpoint_of(child), dialect=painter)
        report = await smoke(endpoint, Options(skip=("auth", "model", "image", "draw"), slots=2))
    skipped = {row.name: row.detail for row in report.rows if row.outcome == "skipped" and "as asked" not in row.detail}
    assert {"text", "stream", "tools", "concurrency"} <= skipped.keys()
    assert skipped["concurrency"] == "the engine (painter) has no route for chat: leave this out"
    assert not [(row.name, row.detail) for row in report.rows if row.outcome == "failed"]


def test_a_report_in_words() -> None:
    """The table shows evidence of failures alone, and takes no server's brackets for markup."""
    rows = (
        Row(name="wait", outcome="ok", took_s=0.5, detail="up", evidence=("GET /health: HTTP 200",)),
        Row(name="text", outcome="failed", took_s=1.23456, detail="bad [/red] [bold]", evidence=("HTTP 500, [x]",)),
    )
    report = SmokeReport(url="http://a", model="m", rows=rows, took_s=2.0)
    out = io.StringIO()
    Console(file=out, width=100).print(report.table())
    assert "http://a  (m): 1 of 2 failed, 2.0 s" in out.getvalue()
    assert "bad [/red] [bold]" in out.getvalue()
    assert "HTTP 500, [x]" in out.getvalue()
    assert "/health" not in out.getvalue()
    told = json.loads(report.to_json())
    assert (told["ok"], told["answered"], told["wait_s"], told["rows"][1]["took_s"]) == (False, True, 0.5, 1.2346)
