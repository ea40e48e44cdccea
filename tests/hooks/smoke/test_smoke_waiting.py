"""The smoke test of endpoints: requests at the same time, an endpoint that comes up late, and one that is woken."""

from __future__ import annotations

import json
import re
import socket
import threading
import time

import pytest

from hooks.http.endpoint import Endpoint
from hooks.smoke.run import Options, smoke
from tools.serve import running_fake, running_raw
from tools.smoke import a_fake, answering, endpoint_of, number, row_of

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
