"""The Steps that run every path of a model server, and the words that stand for them."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from hooks.http.answer import Answer, BadAnswer
from hooks.http.picture import red_square
from hooks.warmup.liveness import Repeat, liveness_after
from hooks.warmup.request_file import RawJson
from hooks.warmup.steps import Image, Ping, Text, Thinking, Tools, parse
from supervisor.child import Child
from supervisor.errors import ProfileError
from supervisor.redact import Redactor
from supervisor.steps import Step
from support import ROOT
from tools.serve import KEY, child_at, running_fake, running_raw

STEPS: list[Step] = [Text(), Ping(), Thinking(), Image(), Tools()]
by_name = pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def chat(**message: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}]}


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
    png = red_square(3)
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
        ("{}", "a file that holds a body with messages; another route than chat is asked as"),
        ('{"prompt": "x"}', "a file that holds a body with messages; another route than chat is asked as"),
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
    with pytest.raises(
        ProfileError, match=r"^warmup='txt' .* text, thinking, image, tools, draw, or the path of a file"
    ):
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
    code = "import sys, hooks.warmup.steps, hooks.auth; print('httpx' in sys.modules)"
    root = ROOT
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"


def test_liveness_asks_for_what_the_warmup_proved(tmp_path: Path) -> None:
    """A chat earns the ping, a file for another route is asked again, and what proved nothing asks for nothing."""
    chat = RawJson(path=saved(tmp_path, '{"messages": [{"role": "user", "content": "Hi"}]}'))
    (tmp_path / "other").mkdir()
    other = RawJson(path=saved(tmp_path / "other", '{"path": "/v1/completions", "body": {"prompt": "The sea is"}}'))
    assert liveness_after((Text(),)) == liveness_after((chat,)) == liveness_after((other, Thinking())) == (Ping(),)
    assert liveness_after((other,)) == liveness_after((other, other)) == (Repeat(request=other),)
    assert liveness_after(()) == ()


@pytest.mark.parametrize(
    ("route", "body", "sent"),
    [
        ("/v1/completions", {"prompt": "x"}, {"prompt": "x", "max_tokens": 1}),
        ("/v1/completions", {"prompt": "x", "max_tokens": 900}, {"prompt": "x", "max_tokens": 1}),
        ("/v1/responses", {"input": "x", "max_output_tokens": 900}, {"input": "x", "max_output_tokens": 16}),
        ("/v1/embeddings", {"input": "x"}, {"input": "x"}),
    ],
)
@pytest.mark.anyio
async def test_a_repeated_request_is_a_small_one(
    tmp_path: Path, route: str, body: dict[str, object], sent: dict[str, object]
) -> None:
    """The watchdog's repetition of a file asks the same route for as few tokens as can be, and takes any content."""
    heads: list[str] = []
    seen: list[dict[str, object]] = []

    async def ask(_: Child, path: str, asked: dict[str, object], **__: object) -> Answer:
        heads.append(path)
        seen.append(asked)
        return Answer(status=200, body='{"object": "list"}', redact=Redactor(()))

    step = Repeat(request=RawJson(path=saved(tmp_path, json.dumps({"path": route, "body": body}))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hooks.warmup.liveness.ask", ask)
        await step(child_at(1))
    assert heads == [route]
    assert seen == [{"model": "fake-model", **sent}]
