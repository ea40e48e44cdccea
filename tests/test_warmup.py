"""What a model server must answer, and the Steps that ask for it."""

from __future__ import annotations

import itertools
import json
import pickle
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serve import KEY, child_at, running_fake, running_raw

from hooks.answer import MAX_BODY_BYTES, Answer, BadAnswer, ask
from hooks.rawjson import RawJson
from hooks.text import BLANK, flaw, shorten
from hooks.warmup import Image, Ping, Text, Thinking, Tools, _red_png, parse
from supervisor.contract import Step
from supervisor.errors import ProfileError
from supervisor.redact import MASK, Redactor, Secret

STEPS: list[Step] = [Text(), Ping(), Thinking(), Image(), Tools()]
by_name = pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)


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
        await ask(child_at(child.port, key="sk-tail "), "/v1/models")
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


# ------------------------------------------------------------------------------------------------ the Steps


@pytest.mark.anyio
@by_name
async def test_a_working_server_passes(step: Step) -> None:
    """Every Step passes on a server that works, with the key of the profile."""
    with running_fake() as child:
        await step(child)


@pytest.mark.anyio
@by_name
@pytest.mark.parametrize("kind", ["error", "invalid-json", "cut", "no-choices", "html"])
async def test_no_step_takes_what_is_no_answer(step: Step, kind: str) -> None:
    """Errors with status 200, broken JSON, a cut body, no choices and HTML fail every Step, liveness included."""
    words = {
        "error": "the answer is an error: the planned error",
        "invalid-json": "the answer is not valid JSON",
        "cut": "the connection was cut in the middle of the answer, after",
        "no-choices": "the answer has no choices",
        "html": "the answer is a page of HTML",
    }
    with running_fake("--answer", kind) as child, pytest.raises(BadAnswer, match=r"^" + words[kind]):
        await step(child)


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["empty", "whitespace", "null", "degenerate"])
@pytest.mark.parametrize("step", [Text(), Image()], ids=lambda step: step.name)
async def test_a_200_without_words_fails(step: Step, kind: str) -> None:
    """An answer without content, or with one character for ever, must not be sealed into a snapshot."""
    words = "content is 'G' repeated 64 times" if kind == "degenerate" else "content is blank"
    with running_fake("--answer", kind) as child, pytest.raises(BadAnswer, match=r"^" + words):
        await step(child)


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["empty", "whitespace", "null"])
async def test_liveness_takes_a_blank_token(kind: str) -> None:
    """One token may be a line break on a healthy model, so `Ping` does not demand content."""
    with running_fake("--answer", kind) as child:
        await Ping()(child)


@pytest.mark.anyio
async def test_one_token_is_enough_for_text() -> None:
    """`Text` with a single token passes when that token says something."""
    with running_fake() as child:
        await Text(max_tokens=1)(child)


@pytest.mark.anyio
async def test_thoughts_alone_are_an_answer_to_thinking() -> None:
    """Thinking passes on thoughts without content; degenerate content fails it all the same."""
    with running_fake("--answer", "empty") as child:
        await Thinking()(child)
    with running_fake("--answer", "degenerate") as child, pytest.raises(BadAnswer, match=r"^content is 'G' repeated"):
        await Thinking()(child)


@pytest.mark.anyio
async def test_thinking_needs_something() -> None:
    """Neither content nor thoughts: refused, naming both; the newer name of the field counts."""
    messages = iter([{"content": ""}, {"content": "", "reasoning": "Hm, 9.9."}])

    def reply(_: str) -> bytes:
        return HEAD + b"\r\n" + json.dumps(chat(**next(messages))).encode()

    with running_raw(reply) as child:
        with pytest.raises(BadAnswer, match=r"^content and reasoning_content are blank"):
            await Thinking()(child)
        await Thinking()(child)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("calls", "words"),
    [
        (None, "the message has no tool_calls, though one was required"),
        ([], "the message has no tool_calls, though one was required"),
        ([{}], "a tool call holds no function"),
        ([{"function": {"name": "rm", "arguments": "{}"}}], "a tool call names 'rm', but only get_weather was offered"),
        (
            [{"function": {"name": "get_weather", "arguments": '{"city": "Pa'}}],
            "the arguments of the tool call are not",
        ),
        ([{"function": {"name": "get_weather", "arguments": {}}}], "the arguments of the tool call are not a JSON"),
        ([{"function": {"name": "get_weather"}}], "the arguments of the tool call are not a JSON object in a string"),
    ],
)
async def test_a_tool_call_is_read_to_its_arguments(calls: object, words: str) -> None:
    """A required call must be there, name the function on offer, and bring JSON in a string."""
    body = HEAD + b"\r\n" + json.dumps(chat(content=None, tool_calls=calls)).encode()
    with running_raw(lambda _: body) as child, pytest.raises(BadAnswer, match=r"^" + words):
        await Tools()(child)


@pytest.mark.anyio
async def test_a_refused_key_is_seen() -> None:
    """A server that refuses the key fails the warmup, and the message shows its words but not the key."""
    with running_fake("--reject-key") as child, pytest.raises(BadAnswer) as caught:
        await Text()(child)
    assert str(caught.value).startswith("the server answered HTTP 401 instead of 200. Seen: HTTP 401, {")
    assert "Invalid API Key" in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.anyio
async def test_requests_are_small_and_reproducible(tmp_path: Path) -> None:
    """The body names the profile's model, is greedy, keeps thinking off unless asked for, and does not stream."""
    bodies: list[dict[str, Any]] = []

    async def keep(step: Step) -> dict[str, Any]:
        with running_raw(lambda _: HEAD + b"\r\n" + json.dumps(chat(content="OK")).encode()) as child:
            original = type(child).client

            def client(self: Any, **settings: Any) -> Any:
                made = original(self, **settings)

                async def record(request: Any) -> None:
                    bodies.append(json.loads(request.content))

                made.event_hooks = {"request": [record]}
                return made

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(type(child), "client", client)
                await step(child)
        return bodies.pop()

    text, thinking = await keep(Text()), await keep(Thinking())
    assert text == {
        "model": "fake-model",
        "messages": [{"role": "user", "content": "Reply with the word OK."}],
        "max_tokens": 8,
        "temperature": 0,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    assert thinking["chat_template_kwargs"] == {"enable_thinking": True}
    own = {"model": "mine", "messages": [{"role": "user", "content": "Hi"}], "seed": 7}
    (tmp_path / "own.json").write_text(json.dumps(own), encoding="utf-8")
    assert await keep(RawJson(path=tmp_path / "own.json")) == own
    del own["model"]
    (tmp_path / "own.json").write_text(json.dumps(own), encoding="utf-8")
    assert await keep(RawJson(path=tmp_path / "own.json")) == {**own, "model": "fake-model"}


def test_the_picture_is_a_png() -> None:
    """The picture decodes to red pixels of the size that its head says."""
    png = _red_png(3)
    assert png.startswith(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x03\0\0\0\x03\x08\x02\0\0\0")
    size = int.from_bytes(png[33:37], "big")
    assert png[37:41] == b"IDAT"
    data = png[41 : 41 + size]
    assert zlib.decompress(data) == (b"\0" + b"\xff\0\0" * 3) * 3
    assert int.from_bytes(png[41 + size : 45 + size], "big") == zlib.crc32(b"IDAT" + data)


# ------------------------------------------------------------------------------------------------ files and words


def saved(folder: Path, text: str) -> Path:
    path = folder / "request.json"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{\n "messages": [,]}', "a file that holds JSON: line 2, column 15: Expecting value"),
        ("", "a file that holds JSON: line 1, column 1: Expecting value"),
        ('{"messages": [1], "top_p": NaN}', "a file that holds JSON in UTF-8: NaN is not a number of JSON"),
        ('{"messages": ["\\ud800"]}', "a file that holds JSON in UTF-8: 'utf-8' codec can't encode"),
        ("[]", "a file that holds a JSON object"),
        ("{}", "a file that holds a body with messages; another route is asked as"),
        ('{"prompt": "x"}', "a file that holds a body with messages; another route is asked as"),
        ('{"path": "/v1/completions"}', "a file that holds a body that is a JSON object"),
        ('{"path": "v1", "body": {}}', "a file that holds a path that begins with /, not 'v1'"),
        ('{"path": "/v1/completions", "body": {}, "key": 1}', "only path and body beside each other, not key"),
        ('{"messages": [{}], "stream": true}', "a file that holds a body without stream"),
    ],
)
def test_a_wrong_request_file_is_refused_at_once(tmp_path: Path, text: str, words: str) -> None:
    """A file that could not be sent is refused when the Step is made, with its name and the place."""
    path = saved(tmp_path, text)
    with pytest.raises(ProfileError) as caught:
        RawJson(path=path)
    assert str(caught.value).startswith(f"warmup={str(path)!r} is not valid: it must be ")
    assert words in str(caught.value)


def test_a_missing_request_file_is_refused_at_once(tmp_path: Path) -> None:
    """A file that is not there, a folder, and bytes that are no text are told apart."""
    binary = tmp_path / "binary.json"
    binary.write_bytes(b"\xff\xfe\0")
    for path, words in (
        (tmp_path / "no.json", "a file that can be read (No such file or directory)"),
        (tmp_path, "a file that can be read (Is a directory)"),
        (binary, "a file that holds JSON in UTF-8: 'utf-8' codec can't decode byte 0xff in position 0"),
    ):
        with pytest.raises(ProfileError) as caught:
            RawJson(path=path)
        assert words in str(caught.value)


@pytest.mark.anyio
async def test_a_request_file_is_sent(tmp_path: Path) -> None:
    """The bare body goes to chat; with a path it goes there; both verify that something was written."""
    chat_file = saved(tmp_path, '{"messages": [{"role": "user", "content": "Hi"}]}')
    plain_file = tmp_path / "plain.json"
    plain_file.write_text('{"path": "/v1/completions", "body": {"prompt": "Hi"}}', encoding="utf-8")
    with running_fake() as child:
        await RawJson(path=chat_file)(child)
        await RawJson(path=plain_file)(child)
    with running_fake("--answer", "whitespace") as child:
        with pytest.raises(BadAnswer, match=r"^content and reasoning_content are blank"):
            await RawJson(path=chat_file)(child)
        with pytest.raises(BadAnswer, match=r"^text is blank"):
            await RawJson(path=plain_file)(child)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("output", "words"),
    [
        ([{"type": "message", "content": [{"type": "output_text", "text": "OK"}]}], None),
        ([{"type": "reasoning", "summary": []}, {"type": "function_call", "name": "f", "arguments": "{}"}], None),
        ([{"type": "reasoning", "content": [{"text": "Hm."}]}, {"type": "message", "content": []}], None),
        ([], "output is blank"),
        (None, "output is blank"),
        ([{"type": "message", "content": [{"type": "output_text", "text": " "}]}], r"output\[0\] is blank"),
        (
            [{"type": "message", "content": [{"type": "output_text", "text": "????"}]}],
            r"output\[0\] is '\?' repeated 4",
        ),
    ],
)
async def test_responses_are_read(tmp_path: Path, output: object, words: str | None) -> None:
    """The shape of /v1/responses is verified like the others."""
    step = RawJson(path=saved(tmp_path, '{"path": "/v1/responses", "body": {"input": "Hi"}}'))
    body = HEAD + b"\r\n" + json.dumps({"error": None, "output": output}).encode()
    with running_raw(lambda _: body) as child:
        if words is None:
            await step(child)
        else:
            with pytest.raises(BadAnswer, match=r"^" + words):
                await step(child)


def test_words_become_steps(tmp_path: Path) -> None:
    """The words of the command line give their Steps, a path gives the file's, the rest is refused with the choice."""
    assert [parse(word) for word in ("text", "thinking", "image", "tools")] == [Text(), Thinking(), Image(), Tools()]
    assert parse(str(saved(tmp_path, '{"messages": [{}]}'))).name == "request.json"
    with pytest.raises(ProfileError, match=r"^warmup='txt' .* text, thinking, image, tools, or the path of a file"):
        parse("txt")
    with pytest.raises(ProfileError, match=r"can be read \(No such file"):
        parse("missing.json")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Text(max_tokens=0), "text.max_tokens=0 is not valid: it must be at least 1."),
        (lambda: Tools(prompt=" "), "tools.prompt=' ' is not valid: it must be not blank."),
        (lambda: Image(side_px=0), "image.side_px=0 is not valid: it must be from 1 to 4096."),
    ],
)
def test_wrong_settings_are_refused(make: Any, words: str) -> None:
    """A Step with a setting that cannot work is refused when it is made."""
    with pytest.raises(ProfileError) as caught:
        make()
    assert str(caught.value) == words


def test_importing_the_steps_is_cheap() -> None:
    """The HTTP client is imported only when there is a child to ask."""
    code = "import sys, hooks.warmup, hooks.auth; print('httpx' in sys.modules)"
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"
