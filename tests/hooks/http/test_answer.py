"""What a model server must answer, and how it is fetched."""

from __future__ import annotations

import itertools
import json
import pickle
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hooks.http.answer import Answer, BadAnswer
from hooks.http.ask import MAX_BODY_BYTES, ask
from hooks.http.text import BLANK, flaw, shorten
from hooks.warmup.steps import Ping, Text
from supervisor.redact import MASK, Redactor, Secret
from tools.serve import KEY, running_fake, running_raw


def connections_to(port: int) -> int:
    """How many sockets of this host are connected to a local port, seen from the client's end."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    return sum(row[2].endswith(f":{port:04X}") and row[3] == "01" for row in rows)


def answer(body: object, status: int = 200) -> Answer:
    text = body if isinstance(body, str) else json.dumps(body)
    return Answer(status=status, body=text, redact=Redactor([Secret(KEY)]))


def chat(**message: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}]}


# ------------------------------------------------------------------------------------------------ text


@pytest.mark.parametrize(
    "text", ["OK", "ok.", "!!", "...", "7", "G", "GGG", "OK OK OK OK", "哈哈", "a\u200bb", "<b>", "NaN"]
)
def test_short_answers_are_answers(text: str) -> None:
    """Short, odd and repetitive words are what working models write."""
    assert flaw(text) is None


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", BLANK),
        (" \n\t", BLANK),
        ("\0\x1b\u200b\xa0", BLANK),
        ("\ud800", BLANK),
        ("GGGG", "is 'G' repeated 4 times"),
        ("! !\n!!!", "is '!' repeated 5 times"),
        ("\ufffd", "holds nothing but replacement characters (U+FFFD)"),
        ("\ufffd \ufffd", "holds nothing but replacement characters (U+FFFD)"),
        ("<unused49><unused49>", "holds nothing but placeholder tokens (<unused49><unused49>)"),
        ("<pad> <pad>\n<pad>", "holds nothing but placeholder tokens (<pad><pad><pad>)"),
    ],
)
def test_broken_text_is_named(text: str, wrong: str) -> None:
    """Text that only a broken model writes is told apart, in words."""
    assert flaw(text) == wrong


@given(st.characters(exclude_categories=["C", "Z"]), st.lists(st.sampled_from(["", " ", "\n", "\u200b"]), min_size=4))
def test_one_character_is_degenerate_however_it_is_spaced(char: str, gaps: list[str]) -> None:
    """From the fourth time on, one character repeated is refused, whatever blanks stand between."""
    text = "".join(char + gap for gap in gaps)
    assert flaw(text) is not None
    assert flaw("z" + text + "y") is None


@given(st.text(st.characters(categories=["L", "N", "P"]), min_size=1))
def test_two_different_letters_are_enough(text: str) -> None:
    """The predicate never refuses printable text in which two different characters stand, nor one under four."""
    assert (flaw(text) is None) == (len(set(text)) > 1 or len(text) < 4)


@given(st.text(), st.integers(20, 400))
def test_a_shortened_text_fits_on_a_line(text: str, limit: int) -> None:
    """What is shown is one printable line within the limit, and keeps both ends."""
    short = shorten(text, limit)
    assert len(short) <= limit
    assert short.isprintable()
    assert "  " not in short
    assert short.strip() == short
    assert shorten(short, limit) == short
    if len(words := " ".join(text.split())) > limit and words.isprintable():
        assert words.startswith(short[:5])
        assert words.endswith(short[-5:])
        assert " ... " in short


# ------------------------------------------------------------------------------------------------ one answer


@given(st.text(), st.text())
def test_the_key_never_shows(before: str, after: str) -> None:
    """A body or a reason that echoes the key is shown with a mask in its place."""
    error = answer(before + KEY + after).bad(f"it said {KEY}")
    assert KEY not in str(error)
    assert MASK in error.reason


@given(st.text("xyz ", max_size=400), st.integers(1, len(KEY)))
def test_a_key_cut_in_two_does_not_show(before: str, cut: int) -> None:
    """When the connection is lost within the key, its beginning is not shown either."""
    part = Answer(status=200, body=before + KEY[:cut], redact=Redactor([Secret(KEY)]), whole=False)
    assert part.excerpt == shorten(before + (MASK if cut == len(KEY) else ""))


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (
            {"error": {"message": "Loading model"}},
            503,
            "the server answered HTTP 503 instead of 200. Seen: HTTP 503, {",
        ),
        ("", 200, "the answer is not valid JSON (Expecting value: line 1 column 1 (char 0)). Seen: HTTP 200, an empty"),
        ('{"choices": [', 200, "the answer is not valid JSON (Expecting value: line 1 column 14"),
        ("<html><h1>Welcome</h1>", 200, "the answer is a page of HTML, so another program may listen there. Seen: "),
        ('{"logprob": NaN}', 200, "the answer is not valid JSON (it holds NaN, which shows numbers that went wrong"),
        ("[" * 100_000, 200, "the answer is not valid JSON (maximum recursion depth"),
        ([1], 200, "the answer is JSON but not an object. Seen: HTTP 200, [1]"),
        ({"error": {"message": "out of\nmemory"}}, 200, "the answer is an error: out of memory. Seen: HTTP 200, {"),
        ({"error": "boom"}, 200, "the answer is an error: boom"),
        ({"object": "error", "message": "no"}, 200, "the answer is an error: no"),
        ({"choices": []}, 200, 'the answer has no choices. Seen: HTTP 200, {"choices": []}'),
        ({"choices": {}}, 200, "the answer has no choices"),
        ({"choices": [{}]}, 200, "choices[0] has no message"),
        (chat(content=None), 200, "content is blank. Seen: "),
        (chat(content=" \n"), 200, "content is blank"),
        (chat(content=3), 200, "content is of type int, not text"),
        (chat(content="GGGGGGGG"), 200, "content is 'G' repeated 8 times"),
        (chat(content=[{"type": "text", "text": ""}]), 200, "content is blank"),
    ],
)
def test_a_wrong_answer_says_what_came(body: object, status: int, words: str) -> None:
    """Each way to be no answer has words of its own, followed by what was seen."""
    with pytest.raises(BadAnswer) as caught:
        answer(body, status).content()
    assert str(caught.value).startswith(words)
    assert caught.value.status == status


def test_a_good_answer_is_its_content() -> None:
    """The content comes back as it was written; parts are joined; a null error is none."""
    assert answer({**chat(content=" OK "), "error": None}).content() == " OK "
    assert answer(chat(content=[{"type": "text", "text": "O"}, {"type": "text", "text": "K"}])).content() == "OK"


def test_thoughts_that_used_up_the_tokens_are_named() -> None:
    """A blank content beside thoughts, ended by the limit, says so: it is the commonest cause."""
    body = chat(content="", reasoning_content="Let me")
    body["choices"][0]["finish_reason"] = "length"
    with pytest.raises(BadAnswer, match=r"^content is blank \(max_tokens was reached and was spent on thinking: raise"):
        answer(body).content()


def test_an_error_survives_pickling() -> None:
    """Hosts pickle what a hook raises; the fields and the words stay."""
    error = answer({"choices": []}).bad("the answer has no choices")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (str(again), again.status, again.body) == (str(error), 200, '{"choices": []}')


def test_a_long_body_loses_its_middle() -> None:
    """A message shows at most 300 characters of the body, both ends among them."""
    body = answer("[" + " 1,\n" * 1000 + "2]").bad("it").body
    assert len(body) <= 300
    assert (body[:5], body[-5:]) == ("[ 1, ", "1, 2]")


# ------------------------------------------------------------------------------------------------ over the wire


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("payload", "status", "words"),
    [
        (
            HEAD + b'Content-Length: 99\r\n\r\n{"choi',
            200,
            "the connection was cut in the middle of the answer, after 6",
        ),
        (
            HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n[1, 2\r\n",
            200,
            "the connection was cut in the middle of the",
        ),
        (b"", None, "the request failed: Server disconnected without sending a response."),
        (b"SSH-2.0-OpenSSH_9.9\r\n\r\n", None, "the request failed: illegal status line"),
    ],
    ids=["length", "chunked", "nothing", "ssh"],
)
async def test_a_cut_connection_is_told(payload: bytes, status: int | None, words: str) -> None:
    """A connection that ends too early is reported as that, with what had come, and keeps its cause."""
    with running_raw(lambda _: payload) as child, pytest.raises(BadAnswer) as caught:
        await ask(child, "/v1/models")
    assert str(caught.value).startswith(words)
    assert caught.value.status == status
    assert caught.value.__cause__ is not None
    assert not str(caught.value).endswith("..")


@pytest.mark.anyio
async def test_an_endless_answer_is_not_read_on() -> None:
    """A server that floods is left after 4 MiB."""

    def flood(_: str) -> Iterator[bytes]:
        yield HEAD + b"\r\n"
        yield from itertools.repeat(b"x" * 65536)

    with running_raw(flood) as child, pytest.raises(BadAnswer) as caught:
        await ask(child, "/v1/models")
    assert str(caught.value).startswith(
        f"the answer is longer than {MAX_BODY_BYTES} bytes, and was not read to its end"
    )


@pytest.mark.anyio
async def test_a_slow_answer_has_time_while_it_comes() -> None:
    """The limit is one of silence: pieces that come in time may take longer together; then silence ends it."""

    def drip(pieces: int) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n"
        for _ in range(pieces):
            time.sleep(0.25)
            yield b"x"
        time.sleep(1.5 if pieces < 6 else 0)

    with running_raw(lambda _: drip(6)) as child:
        assert (await ask(child, "/", timeout_s=0.6)).body == "xxxxxx"
    words = r"^the answer stopped after 1 bytes: nothing more came for 0.6 s\. Seen: HTTP 200, x$"
    with running_raw(lambda _: drip(1)) as child, pytest.raises(BadAnswer, match=words):
        await ask(child, "/", timeout_s=0.6)


@pytest.mark.anyio
async def test_a_server_that_is_gone_is_no_answer() -> None:
    """A refused connection is a BadAnswer without a status."""
    with running_raw(lambda _: b"") as child:
        pass
    with pytest.raises(BadAnswer, match=r"^no connection to the server \(.+\)\.$") as caught:
        await ask(child, "/v1/models")
    assert caught.value.status is None


@pytest.mark.anyio
async def test_a_hanging_completion_ends_with_the_timeout() -> None:
    """A completion that never comes is given up after the Step's own deadline, in these words."""
    with running_fake("--hang-completions") as child, pytest.raises(BadAnswer, match=r"^no answer came for 0.3 s\.$"):
        await Ping(deadline_s=0.3)(child)


@pytest.mark.anyio
async def test_cancelling_a_step_closes_its_connection() -> None:
    """A cancelled Step ends at once, and leaves no connection behind."""
    ended = anyio.Event()
    with running_fake("--hang-completions") as child:
        with anyio.move_on_after(0.3) as scope:
            await Text()(child)
            ended.set()
        assert scope.cancelled_caught
        assert not ended.is_set()
        assert connections_to(child.port) == 0


@pytest.mark.anyio
async def test_a_key_that_no_header_can_carry_stays_secret() -> None:
    """HTTP's own complaint quotes the header: neither the error nor anything shown with it may."""
    with (
        running_raw(lambda _: b"") as child,
        pytest.raises(BadAnswer, match="a header, probably the key, holds a character that HTTP forbids") as caught,
    ):
        await ask(child, "/v1/models", with_key=False, headers={"Authorization": "Bearer sk-tail "})
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
