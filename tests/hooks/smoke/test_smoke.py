"""The smoke test of endpoints: every fault of the fake server fails the checks that it should, and no others."""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from commandline import events_until, run, supervise
from hooks.http.answer import Answer, BadAnswer
from hooks.http.endpoint import Endpoint, Exchange
from hooks.http.stream import _read
from hooks.smoke.report import Report, Row
from hooks.smoke.run import NAMES, Options, smoke
from supervisor.child import Child
from supervisor.engines.llama_cpp import LLAMA_CPP
from supervisor.errors import ProfileError
from supervisor.redact import Redactor, Secret
from support import ROOT
from tools.serve import FAKE, KEY, running_fake, running_raw

JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
GENERATING = {"text", "thinking", "image", "tools", "responses", "stream", "metrics", "concurrency"}


def endpoint_of(child: Child, **fields: Any) -> Endpoint:
    given: dict[str, Any] = {"url": child.url, "api_key": Secret(KEY), "timeout_s": 20.0, "dialect": LLAMA_CPP}
    return Endpoint(**(given | fields))


def failed(report: Report) -> set[str]:
    return {row.name for row in report.rows if row.outcome == "failed"}


def row_of(report: Report, name: str) -> Row:
    (row,) = [row for row in report.rows if row.name == name]
    return row


def number(report: Report, name: str, measure: str) -> float:
    value = row_of(report, name).numbers[measure]
    assert value is not None
    return value


def answering(**message: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
    return JSON_HEAD + json.dumps({"choices": [choice]}).encode()


class Fake:
    """The fake server on one port, which may be ended and started anew there. Does not wait until it is ready."""

    def __init__(self) -> None:
        self.port = 0
        self.process: subprocess.Popen[str] | None = None

    def start(self, *flags: str) -> None:
        argv = [sys.executable, str(FAKE), "--port", str(self.port), "--alias", "m", "--api-key", KEY]
        argv += ["--metrics", *flags]
        self.process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if "--bind-late" in flags:
            return
        assert self.process.stderr
        bound = next(line for line in self.process.stderr if "bound the HTTP server socket" in line)
        self.port = int(bound.rpartition(":")[2])

    def stop(self) -> None:
        if self.process:
            self.process.kill()
            self.process.communicate()
        self.process = None

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(url=f"http://127.0.0.1:{self.port}", api_key=Secret(KEY), timeout_s=20, dialect=LLAMA_CPP)


@contextmanager
def a_fake() -> Iterator[Fake]:
    fake = Fake()
    try:
        yield fake
    finally:
        fake.stop()


# ------------------------------------------------------------------------------------------------ good and bad servers


@pytest.mark.anyio
async def test_a_working_endpoint_passes_everything() -> None:
    """Every check passes, measures what it should, shows evidence, and the key is nowhere in the report."""
    started: list[str] = []
    with running_fake("--metrics", "--parallel", "3", "--alias", "m", "--mmproj", "m") as child:
        report = await smoke(endpoint_of(child, url=f"{child.url}/v1/"), Options(), on_start=started.append)
    assert [(row.name, row.outcome) for row in report.rows] == [
        ("wait", "ok"),
        *((name, "ok") for name in NAMES if name != "wake"),
        ("wake", "skipped"),
    ]
    assert started == ["wait", *(name for name in NAMES if name != "wake")]
    assert (report.ok, report.answered, report.model) == (True, True, "m")
    assert all(row.evidence and row.detail for row in report.rows if row.outcome == "ok")
    assert 0 < number(report, "stream", "first_token_s") < 10
    thoughts = row_of(report, "thinking").numbers
    assert list(thoughts) == ["reasoning_chars_0", "reasoning_chars_32", "reasoning_chars_unlimited"]
    assert row_of(report, "metrics").numbers["llamacpp:tokens_predicted_total"] == 1
    assert row_of(report, "concurrency").numbers["slots"] == 3
    assert KEY not in report.to_json()


CASES: dict[str, tuple[tuple[str, ...], dict[str, Any], set[str], str, str]] = {
    "open": (("--open",), {}, {"auth"}, "auth", "open to everybody.*POST /v1/chat/completions without a key: HTTP 200"),
    "key refused": (("--reject-key",), {}, set(NAMES) - {"wake"}, "auth", "refuses the key of --api-key-env.*HTTP 401"),
    "other key": ((), {"api_key": Secret("not-it")}, set(NAMES) - {"wake"}, "text", "HTTP 401.*Invalid API Key"),
    "other model": (("--alias", "b"), {"model": "a"}, {"model"}, "model", "the endpoint serves 'b', not 'a'"),
    "no model": (("--router",), {}, GENERATING | {"model"}, "model", 'models lists no model .*"data": \\[\\]'),
    "hang": (("--hang-completions",), {"timeout_s": 0.2}, GENERATING, "text", "no answer came for 0.2 s.*: no answer"),
    "empty": (("--answer", "empty"), {}, GENERATING - {"metrics"}, "stream", "the stream brought no text"),
    "null": (("--answer", "null"), {}, GENERATING - {"metrics"}, "text", 'content is blank.*"content": null'),
    "blank": (("--answer", "whitespace"), {}, GENERATING - {"metrics"}, "responses", r"output\[0\].content is blank"),
    "degenerate": (("--answer", "degenerate"), {}, GENERATING - {"metrics"}, "stream", "content is 'G' repeated 64"),
    "error": (("--answer", "error"), {}, GENERATING, "stream", "the answer is an error: the planned error"),
    "broken JSON": (("--answer", "invalid-json"), {}, GENERATING, "stream", "the answer is not valid JSON"),
    "cut": (("--answer", "cut"), {}, GENERATING, "stream", "the connection was cut in the middle of the answer"),
    "no choices": (("--answer", "no-choices"), {}, GENERATING, "responses", "output of type message is blank"),
    "HTML": (("--answer", "html"), {}, GENERATING, "stream", "a page of HTML.*Welcome to nginx"),
}


@pytest.mark.anyio
@pytest.mark.parametrize("case", CASES)
async def test_each_fault_fails_what_it_should(case: str) -> None:
    """A fault fails exactly the checks that it spoils, and says what was seen."""
    flags, fields, wanted, name, words = CASES[case]
    with running_fake("--alias", "m", "--metrics", "--parallel", "2", "--mmproj", "m", *flags) as child:
        report = await smoke(endpoint_of(child, **fields), Options())
    assert failed(report) == wanted
    row = row_of(report, name)
    assert re.search(words, f"{row.detail} {' '.join(row.evidence)}"), row
    assert not report.ok
    assert report.answered


@pytest.mark.anyio
async def test_an_endpoint_without_metrics() -> None:
    """Without --metrics only that check fails, and names the flag."""
    with running_fake("--alias", "m") as child:
        report = await smoke(endpoint_of(child), Options())
    assert failed(report) == {"metrics"}
    assert "/metrics answered HTTP 501 (llama-server needs --metrics)" in row_of(report, "metrics").detail


@pytest.mark.anyio
async def test_an_endpoint_that_is_meant_to_be_open() -> None:
    """With `open_access` a server without a key is good, and one that wants a key is not."""
    with running_fake("--alias", "m", "--metrics", server_key=None) as child:
        assert (await smoke(endpoint_of(child, api_key=None, open_access=True), Options())).ok
    with running_fake() as child:
        report = await smoke(endpoint_of(child, api_key=None, open_access=True), Options(only=("auth",)))
    assert "says open_access=True, but the server wants a key" in row_of(report, "auth").detail


@pytest.mark.anyio
async def test_an_answer_that_changes() -> None:
    """The same greedy, seeded request answered in two ways is not deterministic; both answers are told."""
    count = itertools.count()
    with running_raw(lambda _: answering(content=f"OK {next(count)}")) as child:
        report = await smoke(endpoint_of(child), Options(only=("text",)))
    assert failed(report) == {"text"}
    assert re.search("not deterministic.*'OK 2', then 'OK 3'", row_of(report, "text").detail)


# In the order of the requests: budgets of 32, 0, no limit.
THOUGHTS: dict[str, tuple[tuple[int, int, int], str]] = {
    "ignored": ((1000, 1000, 1000), "1000, 1000 and 1000 characters.*budgets 0, 32, unlimited.*Gemma 4.*patch"),
    "not limited by 32": ((100, 10, 100), "10, 100 and 100.*patch"),
    "32 gives none": ((10, 10, 100), "10, 10 and 100.*no more thought than none"),
}


@pytest.mark.anyio
@pytest.mark.parametrize("case", THOUGHTS)
async def test_reasoning_grows_with_the_budget(case: str) -> None:
    """A budget that changes nothing is a failure that names the missing patch of Gemma 4."""
    lengths, words = THOUGHTS[case]
    count = itertools.count(-2)  # the wait and the look for a model's name come first

    def thoughts() -> str:
        return "a thought " * (lengths[max(next(count), 0)] // 10)

    with running_raw(lambda _: answering(content="Six.", reasoning_content=thoughts())) as child:
        report = await smoke(endpoint_of(child), Options(only=("thinking",)))
    assert failed(report) == {"thinking"}
    assert re.search(words, row_of(report, "thinking").detail)
    assert len(row_of(report, "thinking").evidence) == 3


@pytest.mark.anyio
async def test_a_model_that_does_not_think() -> None:
    """One request shows it, and the check is skipped; who names the check gets a failure."""
    with running_raw(lambda _: answering(content="Six.")) as child:
        report = await smoke(endpoint_of(child), Options(skip=tuple(set(NAMES) - {"thinking"})))
        named = await smoke(endpoint_of(child), Options(only=("thinking",)))
        must = await smoke(endpoint_of(child), Options(skip=tuple(set(NAMES) - {"thinking"}), must=("thinking",)))
    row = row_of(report, "thinking")
    assert (row.outcome, len(row.evidence)) == ("skipped", 1)
    assert "the model does not think" in row.detail
    assert report.ok
    assert failed(named) == failed(must) == {"thinking"}
    assert row_of(named, "thinking").detail == row.detail


@pytest.mark.anyio
async def test_a_model_that_does_not_see() -> None:
    """What /props says decides; who names the check gets a failure, and an endpoint without /props is tried."""
    with running_fake() as child:
        report = await smoke(endpoint_of(child), Options(skip=tuple(set(NAMES) - {"image"})))
        named = await smoke(endpoint_of(child), Options(only=("image",)))
    row = row_of(report, "image")
    assert (row.outcome, row.detail) == ("skipped", "/props says that the model has no vision")
    assert report.ok
    assert failed(named) == {"image"}

    def answer(head: str) -> bytes:
        return b"HTTP/1.1 404 Not Found\r\n\r\n" if "/props" in head else answering(content="A red square.")

    with running_raw(answer) as child:
        report = await smoke(endpoint_of(child), Options(only=("image",)))
    assert row_of(report, "image").outcome == "ok"


@pytest.mark.anyio
async def test_counters_that_stand_still() -> None:
    """A metrics page whose token counters do not move is a failure; other counters do not count."""
    page = 'llamacpp:prompt_tokens_total{model="a"} 5\nllamacpp:prompt_tokens_total{model="b"} 2\nrequests_total %d\n'
    count = itertools.count()

    def answer(head: str) -> bytes:
        return (
            b"HTTP/1.1 200 OK\r\n\r\n" + (page % next(count)).encode()
            if "/metrics" in head
            else answering(content="OK")
        )

    with running_raw(answer) as child:
        report = await smoke(endpoint_of(child), Options(only=("metrics",)))
    assert "a completion moved none of llamacpp:prompt_tokens_total" in row_of(report, "metrics").detail


# ------------------------------------------------------------------------------------------------ engines


@pytest.mark.anyio
async def test_an_unknown_engine_is_not_guessed_at() -> None:
    """Of an engine whose dialect says nothing, checks that need its words are skipped and no route of its is asked."""
    asked: list[str] = []

    def answer(head: str) -> bytes:
        asked.append(head.split()[1])
        return answering(content="OK")

    names = ("thinking", "image", "metrics", "concurrency")
    with running_raw(answer) as child:
        skip = tuple(set(NAMES) - set(names))
        report = await smoke(endpoint_of(child, dialect=None), Options(skip=skip), dialects=(LLAMA_CPP,))
    outcomes = {name: row_of(report, name).outcome for name in names}
    assert outcomes == {"thinking": "skipped", "image": "ok", "metrics": "skipped", "concurrency": "skipped"}
    assert "say how many" in row_of(report, "concurrency").detail
    assert set(asked) == {"/health", "/v1/models", "/v1/chat/completions"}


@pytest.mark.anyio
async def test_the_list_of_models_tells_the_engine() -> None:
    """`owned_by` names the engine, whose dialect then serves every check; without candidates the engine is unknown."""
    with running_fake("--metrics", "--parallel", "3", "--alias", "m") as child:
        only = Options(only=("metrics", "concurrency"))
        known = await smoke(endpoint_of(child, dialect=None), only, dialects=(LLAMA_CPP,))
        plain = await smoke(endpoint_of(child, dialect=None), Options(skip=tuple(set(NAMES) - {"metrics", "text"})))
    assert number(known, "concurrency", "slots") == 3
    assert "llamacpp:tokens_predicted_total +1" in row_of(known, "metrics").detail
    assert row_of(plain, "metrics").outcome == "skipped"
    assert "the engine (plain) has no counters of tokens" in row_of(plain, "metrics").detail


# ------------------------------------------------------------------------------------------------ concurrency


@pytest.mark.anyio
async def test_the_slots_are_used_at_the_same_time() -> None:
    """As many requests as /props tells are under way at once: together they take little longer than one."""
    with running_fake("--parallel", "8", "--slow-first-byte", "1") as child:
        report = await smoke(endpoint_of(child), Options(only=("concurrency",)))
    assert row_of(report, "concurrency").numbers["slots"] == 8
    assert 1 <= number(report, "concurrency", "took_s") < 4
    assert len(row_of(report, "concurrency").evidence) == 6


@pytest.mark.anyio
async def test_slots_that_contradict_the_server() -> None:
    """More slots than the server has would only queue: told as a failure."""
    with running_fake("--parallel", "2") as child:
        report = await smoke(endpoint_of(child), Options(only=("concurrency",), slots=4))
    assert row_of(report, "concurrency").detail == "the server has 2 slots, not 4"


@pytest.mark.anyio
async def test_slots_that_nobody_knows() -> None:
    """Without /props the user must say how many; the check does not guess and does not skip itself."""

    def answer(head: str) -> bytes:
        return b"HTTP/1.1 404 Not Found\r\n\r\n" if "/props" in head else answering(content="OK")

    with running_raw(answer) as child:
        report = await smoke(endpoint_of(child), Options(only=("concurrency",)))
        assert "say how many" in row_of(report, "concurrency").detail
        report = await smoke(endpoint_of(child), Options(only=("concurrency",), slots=2))
        assert "2 of 2 requests at the same time failed, the first: the answer is not a stream" in str(report.rows)


# ------------------------------------------------------------------------------------------------ waiting


@pytest.mark.anyio
async def test_loading_is_waited_for() -> None:
    """503 while loading is retried, counted and timed as `wait`, and the checks then pass."""
    with a_fake() as fake:
        began = time.monotonic()
        fake.start("--load-s", "1.5")
        report = await smoke(fake.endpoint, Options())
        assert report.took_s <= time.monotonic() - began
    assert report.ok
    assert 0.1 < report.wait_s < 20
    assert re.search(r"HTTP 200 after .* s \(\d+ x HTTP 503 \(Loading model\)\)", report.rows[0].detail)
    assert number(report, "wait", "refusals") >= 1
    assert json.loads(report.to_json())["wait_s"] == round(report.wait_s, 4)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("flag", "words"),
    [("--never-ready", r"\d+ x HTTP 503 \(Loading model\)"), ("--hang", "the request hung|no answer")],
)
async def test_an_endpoint_that_never_comes_up(flag: str, words: str) -> None:
    """The deadline ends the wait, also during a request that hangs; no check is run then."""
    with a_fake() as fake:
        fake.start(flag)
        report = await smoke(fake.endpoint, Options(deadline_s=0.5))
    (row,) = report.rows
    assert (row.name, row.outcome, report.answered, report.ok) == ("wait", "failed", False, False)
    assert re.search(words, row.detail)
    assert 0.5 <= report.wait_s < 10


@pytest.mark.anyio
async def test_waiting_cures_no_tls() -> None:
    """https to a server without it fails at once, instead of at the deadline."""

    def accept(listener: socket.socket) -> None:
        with listener.accept()[0] as client:
            client.recv(65536)
            client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept, args=(listener,))
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        report = await smoke(Endpoint(url=url, open_access=True), Options(deadline_s=50))
        thread.join()
    assert not report.answered
    assert "no connection to the server" in report.rows[0].detail
    assert report.wait_s < 20


# ------------------------------------------------------------------------------------------------ the wake


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("flags", "refusal"),
    [(("--load-s", "1"), r"HTTP 503 \(Loading model\)"), (("--load-s", "1", "--bind-late"), "no connection")],
)
async def test_the_wake_tells_platform_and_server_apart(flags: tuple[str, ...], refusal: str) -> None:
    """A server went away while idle: refusals are the platform's time, the request that got through is the server's."""
    idled: list[float] = []
    with a_fake() as fake:
        fake.start()

        async def sleep(seconds: float) -> None:
            idled.append(seconds)
            fake.stop()
            fake.start(*flags)

        report = await smoke(fake.endpoint, Options(only=("wake",), idle_s=900), sleep=sleep)
    assert report.ok
    assert idled == [900]
    assert number(report, "wake", "platform_s") > 0.1
    assert 0 < number(report, "wake", "server_s") < number(report, "wake", "first_token_s")
    assert row_of(report, "wake").numbers["stayed_up"] is False
    assert re.search(refusal, row_of(report, "wake").detail)


async def no_time(_: float) -> None:
    """Lets no time pass."""


@pytest.mark.anyio
async def test_a_server_that_never_went_away() -> None:
    """Counters that go on show that nothing was woken, and the report says so."""
    with running_fake("--metrics") as child:
        report = await smoke(endpoint_of(child), Options(only=("wake",), idle_s=1), sleep=no_time)
    assert report.ok
    assert (number(report, "wake", "platform_s"), row_of(report, "wake").numbers["stayed_up"]) == (0, True)
    assert "The server never went away" in row_of(report, "wake").detail


@pytest.mark.anyio
async def test_a_wake_that_takes_too_long() -> None:
    """Beyond the limit the wake fails, with its times; without counters nothing is claimed about the server."""
    options = Options(only=("wake",), idle_s=1, wake_limit_s=0.0001)
    with running_fake() as child:
        report = await smoke(endpoint_of(child), options, sleep=no_time)
        assert "more than 0.0001 s, so perhaps a cold start" in row_of(report, "wake").detail
        report = await smoke(endpoint_of(child), Options(only=("wake",), idle_s=1), sleep=no_time)
        assert row_of(report, "wake").numbers["stayed_up"] is None


# ------------------------------------------------------------------------------------------------ limits and leaks


@pytest.mark.anyio
async def test_an_answer_without_end() -> None:
    """A stream that trickles for ever is ended by the limit of the check."""
    over = threading.Event()

    def answer(head: str) -> bytes | Iterator[bytes]:
        return trickle() if "POST" in head else answering(content="OK")

    def trickle() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
        while not over.wait(0.01):
            yield b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'

    with running_raw(answer) as child:
        report = await smoke(endpoint_of(child), Options(only=("stream",), check_s=0.3))
        over.set()
    assert row_of(report, "stream").detail == "not done after 0.3 s"


@pytest.mark.anyio
async def test_the_key_is_masked_in_evidence() -> None:
    """A server that repeats the key gets it into no report."""
    refusal = f"HTTP/1.1 400 Bad Request\r\n\r\nno such key: {KEY}".encode()
    with running_raw(lambda head: refusal if "POST" in head else answering(content="OK")) as child:
        report = await smoke(endpoint_of(child), Options())
    assert "no such key: ***" in report.to_json()
    assert KEY not in report.to_json() + str(report)


@pytest.mark.anyio
async def test_proxies_are_for_remote_endpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """A remote URL goes through the environment's proxy, with its path prefix; this host never does."""
    asked: list[str] = []

    def proxy(head: str) -> bytes:
        asked.append(head.partition("\r\n")[0])
        return answering(content="OK")

    for name in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    with running_raw(proxy) as child, running_fake() as local:
        monkeypatch.setenv("HTTP_PROXY", child.url)
        assert (await smoke(endpoint_of(child, url="http://models.test/a/v1"), Options(only=("text",)))).ok
        assert len(asked) == 4
        assert (await smoke(endpoint_of(local), Options(only=("text",)))).ok
    assert asked[0] == "GET http://models.test/a/health HTTP/1.1"
    assert asked[-1] == "POST http://models.test/a/v1/chat/completions HTTP/1.1"
    assert len(asked) == 4


# ------------------------------------------------------------------------------------------------ parts


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


def test_a_report_in_words() -> None:
    """The table shows evidence of failures alone, and takes no server's brackets for markup."""
    rows = (
        Row(name="wait", outcome="ok", took_s=0.5, detail="up", evidence=("GET /health: HTTP 200",)),
        Row(name="text", outcome="failed", took_s=1.23456, detail="bad [/red] [bold]", evidence=("HTTP 500, [x]",)),
    )
    report = Report(url="http://a", model="m", rows=rows, took_s=2.0)
    out = io.StringIO()
    Console(file=out, width=100).print(report.table())
    assert "http://a  (m): 1 of 2 failed, 2.0 s" in out.getvalue()
    assert "bad [/red] [bold]" in out.getvalue()
    assert "HTTP 500, [x]" in out.getvalue()
    assert "/health" not in out.getvalue()
    told = json.loads(report.to_json())
    assert (told["ok"], told["answered"], told["wait_s"], told["rows"][1]["took_s"]) == (False, True, 0.5, 1.2346)


# ------------------------------------------------------------------------------------------------ the command line


def test_verify_passes_and_writes_json(tmp_path: Path) -> None:
    """Exit 0, the table on stdout, JSON in the file; with `-` stdout is JSON and nothing else."""
    env = {"MY_KEY": KEY}
    options = ("--api-key-env", "MY_KEY", "--skip", "image", "--slots", "2")
    with running_fake("--metrics", "--parallel", "2", "--alias", "m") as child:
        out = tmp_path / "report.json"
        status, stdout, stderr = run("smoke", child.url, *options, "--json", str(out), env=env)
        assert (status, stderr) == (0, "")
        assert "(m): all good" in stdout
        assert "as asked (skip image)" in stdout
        assert json.loads(out.read_text())["ok"] is True
        only = ("--only", "text", "--only", "auth")
        status, stdout, stderr = run("smoke", child.url, *options, *only, "--json", "-", env=env)
    assert status == 0
    assert [row["name"] for row in json.loads(stdout)["rows"] if row["outcome"] == "ok"] == ["wait", "auth", "text"]
    assert "all good" in stderr


def test_verify_fails_with_4(tmp_path: Path) -> None:
    """Any failed check is exit code 4, and the table says what was seen."""
    with running_fake("--open") as child:
        status, stdout, _ = run("smoke", child.url, "--api-key-env", "K", "--only", "auth", env={"K": KEY})
        assert status == 4
        assert "open to everybody" in stdout
        assert run("smoke", child.url, "--open", "--only", "text")[0] == 0
        wake = ("--idle-then-wake", "0.01", "--wake-limit-s", "0.0001", "--only", "wake")
        assert run("smoke", child.url, "--open", *wake, "--json", str(tmp_path / "o"))[0] == 4


def test_verify_of_a_dead_endpoint() -> None:
    """An endpoint that never answers within the deadline is exit code 3."""
    with running_fake() as child:
        port = child.port
    status, stdout, _ = run("smoke", f"http://127.0.0.1:{port}", "--open", "--deadline-s", "2")
    assert status == 3
    assert "no connection" in stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("ftp://a", "--open"), "url='ftp://a' is not valid"),
        (("http://a", "--api-key-env", "NO_SUCH"), "NO_SUCH='' is not valid: it must be a non-blank string"),
        (("http://a", "--open", "--skip", "everything"), "skip='everything' is not valid"),
        (("http://a", "--open", "--json", "/no/such/folder/o"), "No such file or directory"),
        (("http://a", "--slots", "two"), "not a valid integer"),
        (
            ("http://a", "--open", "--engine", "llama"),
            "--engine='llama' is not valid: it must be one of plain, llama.cpp",
        ),
    ],
)
def test_verify_refuses_bad_arguments(args: tuple[str, ...], words: str) -> None:
    """Bad arguments are exit code 2 and one readable message, before anything is sent."""
    status, stdout, stderr = run("smoke", *args)
    assert (status, stdout) == (2, "")
    assert words in stderr
    assert "Traceback" not in stderr


def test_other_commands_do_not_pay_for_verify() -> None:
    """The command line loads neither the HTTP client nor the table renderer before they are needed."""
    heavy = "{'httpx', 'rich', 'hooks.smoke.run', 'hooks.http.endpoint'}"
    code = f"import sys, supervisor.cli.app; print({heavy} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout == "set()\n"


# ------------------------------------------------------------------------------------------------ a real engine


@pytest.mark.engine
@pytest.mark.timeout(300)
def test_a_real_engine() -> None:
    """A real server passes what a small base model can do; that it has no vision, /props tells."""
    options = ("run", "local", "--log-format", "json", "--api-key-env", "MY_KEY")
    with supervise(*options, env={"MY_KEY": KEY}) as process:
        url = events_until(process, "child.ready")[-1]["url"]
        drain = threading.Thread(target=process.stderr.read if process.stderr else os.getpid)
        drain.start()
        skip = ("--skip", "thinking", "--skip", "tools", "--idle-then-wake", "0.1", "--json", "-")
        argv = [sys.executable, "-m", "supervisor", "smoke", url, "--api-key-env", "MY_KEY", *skip]
        env = {**os.environ, "MY_KEY": KEY}
        done = subprocess.run(argv, capture_output=True, text=True, timeout=240, env=env, check=False)
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        drain.join()
    report = json.loads(done.stdout)
    outcomes = {row["name"]: row["outcome"] for row in report["rows"]}
    wanted = dict.fromkeys(("wait", *NAMES), "ok") | dict.fromkeys(("image", "thinking", "tools"), "skipped")
    assert outcomes == wanted, done.stderr
    rows = {row["name"]: row for row in report["rows"]}
    assert rows["image"]["detail"] == "/props says that the model has no vision"
    assert rows["stream"]["numbers"]["tokens_per_s"] > 0
    assert rows["concurrency"]["numbers"]["slots"] == 2
    assert rows["wake"]["numbers"]["stayed_up"] is True
    assert report["model"] == "gemma-3-270m"
    assert done.returncode == 0
