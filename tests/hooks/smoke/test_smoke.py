"""The smoke test of endpoints: every fault of the fake server fails the checks that it should, and no others."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from hooks.smoke.run import NAMES, Options, smoke
from supervisor.engines.llama_cpp import LLAMA_CPP
from supervisor.redact import Secret
from tools.serve import KEY, running_fake, running_raw
from tools.smoke import answering, endpoint_of, failed, number, row_of

GENERATING = {"text", "thinking", "image", "tools", "responses", "stream", "metrics", "concurrency"}


# ------------------------------------------------------------------------------------------------ good and bad servers


@pytest.mark.anyio
async def test_a_working_endpoint_passes_everything() -> None:
    """Every check passes, measures what it should, shows evidence, and the key is nowhere in the report."""
    started: list[str] = []
    with running_fake("--metrics", "--parallel", "3", "--alias", "m", "--mmproj", "m") as child:
        report = await smoke(endpoint_of(child, url=f"{child.url}/v1/"), Options(), on_start=started.append)
    assert [(row.name, row.outcome) for row in report.rows] == [
        ("wait", "ok"),
        *((name, "skipped" if name in ("draw", "wake") else "ok") for name in NAMES),
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
    "key refused": (
        ("--reject-key",),
        {},
        set(NAMES) - {"draw", "wake"},
        "auth",
        "refuses the key of --api-key-env.*HTTP 401",
    ),
    "other key": (
        (),
        {"api_key": Secret("not-it")},
        set(NAMES) - {"draw", "wake"},
        "text",
        "HTTP 401.*Invalid API Key",
    ),
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
    assert "--open is set, but the server wants a key" in row_of(report, "auth").detail


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
    assert "a generation moved none of llamacpp:prompt_tokens_total" in row_of(report, "metrics").detail


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
