"""The golden answer: what may be recorded, and what a replay takes."""

from __future__ import annotations

import json
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hooks.golden.step import Golden, GoldenMismatch, goldens
from hooks.http import picture
from hooks.http.answer import BadAnswer
from supervisor import Child
from supervisor.errors import ProfileError
from tools.serve import KEY, running_fake, running_raw

pytestmark = pytest.mark.anyio

BOTH = (Golden(), Golden.image())
each = pytest.mark.parametrize("golden", BOTH, ids=lambda golden: golden.name)

Words = list[tuple[str, Any]]
PARIS: Words = [("Paris", -0.5), (" is", -0.25), (" it", -1.0)]


def chat(words: Words | None, text: str | None = None, **message: Any) -> dict[str, Any]:
    """A completion; `words` are tokens with their log-probabilities, None: none are given."""
    rows = [{"token": token, "logprob": value, "bytes": list(token.encode())} for token, value in words or ()]
    content = "".join(token for token, _ in words or ()) if text is None else text
    choice: dict[str, Any] = {"message": {"content": content, **message}, "finish_reason": "length"}
    return {"choices": [choice | ({} if words is None else {"logprobs": {"content": rows}})]}


def http(body: dict[str, Any] | str, status: str = "200 OK") -> bytes:
    text = body if isinstance(body, str) else json.dumps(body)
    return f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n\r\n{text}".encode()


def script(*bodies: dict[str, Any] | str) -> Callable[[str], bytes]:
    """Answers one body after the other, the last one for ever."""
    rest = list(bodies)
    return lambda _: http(rest.pop(0) if len(rest) > 1 else rest[0])


# ------------------------------------------------------------------------------------------------ asking


@each
async def test_the_same_answer_passes(golden: Golden) -> None:
    """Text and image are recorded and replayed on a server that repeats itself, as often as wanted."""
    with running_fake() as child:
        await golden.record(child)
        await golden.replay(child)
        await golden.replay(child)
    assert (golden.record.name, golden.replay.name) == (f"{golden.name} record", f"{golden.name} replay")


async def test_what_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy, seeded, no prompt cache, no thinking, with log-probabilities; an image travels as data URL."""
    asked: list[dict[str, Any]] = []

    async def keep(_: Child, path: str, body: dict[str, Any], **__: Any) -> Any:
        asked.append(body)
        raise BadAnswer("enough", None, path)

    monkeypatch.setattr(sys.modules["hooks.http.chat"], "ask", keep)  # the package's `chat` is the function
    with running_fake() as child:
        for golden in BOTH:
            with pytest.raises(BadAnswer, match="enough"):
                await golden.record(child)
    text, image = asked
    messages = text.pop("messages")
    assert text == {
        "model": "fake-model",
        "max_tokens": 8,
        "temperature": 0,
        "top_k": 1,
        "seed": 1,
        "cache_prompt": False,
        "logprobs": True,
        "top_logprobs": 1,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    assert messages == [{"role": "user", "content": BOTH[0].prompt}]
    assert image["messages"][0]["content"][1]["image_url"]["url"].startswith("data:image/png;base64,iVBOR")


def test_one_golden_per_path() -> None:
    """A profile with a vision tower has two questions, one without has one; names tell the Steps apart."""
    assert [golden.name for golden in goldens(mmproj=True)] == ["golden text", "golden image"]
    assert [golden.picture for golden in goldens(mmproj=False)] == [None]
    assert Golden(deadline_s=7).replay.deadline_s == 7
    assert Golden.image(max_tokens=4, name="eye").record.name == "eye record"


def test_the_picture_has_structure() -> None:
    """Every 8 by 8 patch of the picture's border differs from every other, and the disc from all of them."""
    import zlib

    side = 96
    png = picture.scene(side)
    rows = zlib.decompress(png[41 : 41 + int.from_bytes(png[33:37], "big")])
    pixel = {(x, y): rows[y * (3 * side + 1) + 1 + 3 * x :][:3] for x in range(side) for y in range(side)}
    patches = [
        b"".join(pixel[x + i, y + j] for i in range(8) for j in range(8)) for x in range(0, side, 8) for y in (0, 88)
    ]
    assert len(set(patches)) == len(patches) == 24
    assert pixel[48, 48] == b"\xff\xd0\0"


@pytest.mark.parametrize(
    ("field", "value"),
    [("prompt", " "), ("max_tokens", 0), ("tolerance", -1.0), ("tolerance", float("nan")), ("tolerance", float("inf"))],
)
def test_settings_are_checked(field: str, value: Any) -> None:
    """A setting that makes no sense names itself."""
    with pytest.raises(ProfileError, match=rf"golden text\.{field}"):
        Golden(**{field: value})


# ------------------------------------------------------------------------------------------------ recording


@each
@pytest.mark.parametrize("kind", ["empty", "whitespace", "null", "degenerate", "error", "html", "cut"])
async def test_a_bad_golden_is_never_recorded(golden: Golden, kind: str) -> None:
    """What is no answer fails the record; a replay afterwards still has nothing to compare with."""
    golden = Golden(picture=golden.picture)
    with running_fake("--answer", kind) as child:
        with pytest.raises(BadAnswer):
            await golden.record(child)
        with pytest.raises(RuntimeError, match="nothing was recorded: put the `record` of the same 'golden text'"):
            await golden.replay(child)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("null", "is None: numbers went wrong"),
        ("1e999", "is inf: numbers went wrong"),
        ("-1e999", "is -inf: numbers went wrong"),
        ("true", "is True: numbers went wrong"),
        ('"-0.5"', "is -0.5: numbers went wrong"),
        ("-3.4e38", "is -3.4e+38, which the likeliest token never has"),
        ("0.5", "is 0.5, which the likeliest token never has"),
        ("NaN", "not valid JSON (it holds NaN"),
    ],
)
async def test_impossible_log_probabilities(value: str, words: str) -> None:
    """NaN, null, infinity and numbers that no greedy token has are a broken model, however good its text looks."""
    body = json.dumps(chat([("Paris", -0.5), (" is", 123)])).replace("123", value)
    with running_raw(script(body)) as child, pytest.raises(BadAnswer, match=re.escape(words)):
        await Golden().record(child)


@pytest.mark.parametrize(
    ("rows", "words"),
    [("abc", "logprobs.content is of type str"), ([3], "entry 1 of logprobs"), ([{"logprob": 0}], "names no token")],
)
async def test_broken_log_probabilities(rows: Any, words: str) -> None:
    """Log-probabilities of another shape than OpenAI's are an error that names the place."""
    body = chat(PARIS)
    body["choices"][0]["logprobs"]["content"] = rows
    with running_raw(script(body)) as child, pytest.raises(BadAnswer, match=words):
        await Golden().record(child)


async def test_a_server_that_does_not_repeat_itself() -> None:
    """Two different answers before the seal fail the record, with both and what to do; log-probabilities too."""
    golden = Golden()
    with running_fake("--random-answers") as child:
        with pytest.raises(GoldenMismatch, match="the server does not repeat itself") as caught:
            await golden.record(child)
        with pytest.raises(RuntimeError, match="nothing was recorded"):
            await golden.replay(child)
    assert (caught.value.expected, caught.value.seen) == ("Answer number 1.", "Answer number 2.")
    assert "token 3 is ' 2.' instead of ' 1.'" in str(caught.value)
    assert "use one slot, turn speculative decoding off" in str(caught.value)
    shaky = script(chat(PARIS), chat([(token, value - 0.3) for token, value in PARIS]))
    with running_raw(shaky) as child, pytest.raises(GoldenMismatch, match=r"does not repeat itself.*0\.3000 apart"):
        await golden.record(child)


async def test_a_failed_record_keeps_the_last_good_one() -> None:
    """A second record that fails leaves the first: it refuses the seal, and costs nothing else."""
    golden = Golden()
    with running_raw(script(chat(PARIS), chat(PARIS), chat(None, " "), chat(PARIS))) as child:
        await golden.record(child)
        with pytest.raises(BadAnswer, match="content is blank"):
            await golden.record(child)
        await golden.replay(child)


# ------------------------------------------------------------------------------------------------ comparing


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (chat([("Paris", -0.5), (" was", -0.25), (" it", -1.0)]), "token 2 is ' was' instead of ' is'"),
        (chat([("Paris", -0.5), (" is", -0.25)]), "token 3 is the end instead of ' it'"),
        (chat([*PARIS, ("!", -0.1)]), "token 4 is '!' instead of the end"),
        (
            chat([("Paris", -0.45), (" is", -0.85), (" it", -1.3)]),
            "token 2, ' is', is -0.8500 instead of -0.2500: 0.6000 apart, more than the tolerance of 0.01",
        ),
        (chat(PARIS, "Paris is it?"), "the text differs from character 12 on"),
        (chat(None, "Paris is it"), "log-probabilities were there before, and now there are none"),
        (chat(None, "GGGGGGGG"), "content is 'G' repeated 8 times"),
        (chat([("Paris", None), (" is", -0.25), (" it", -1.0)]), "log-probability of token 1 ('Paris') is None"),
        ({"choices": []}, "the answer has no choices"),
    ],
)
async def test_a_mismatch_says_where(now: dict[str, Any], words: str) -> None:
    """The first token that differs, or else the largest difference of log-probabilities, with both answers."""
    golden = Golden()
    with running_raw(script(chat(PARIS), chat(PARIS), now)) as child:
        await golden.record(child)
        with pytest.raises(GoldenMismatch) as caught:
            await golden.replay(child)
    assert words in caught.value.reason
    assert caught.value.expected == "Paris is it"
    seen = now["choices"][0]["message"]["content"] if now["choices"] else '{"choices": []}'
    assert seen in caught.value.seen
    assert str(caught.value).endswith(f". Expected: 'Paris is it'. Seen: {caught.value.seen!r}")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301


async def test_rounding_is_no_mismatch() -> None:
    """Log-probabilities within the tolerance pass, in both directions; the tolerance is a setting."""
    golden, strict = Golden(), Golden(tolerance=0.001)
    near = chat([("Paris", -0.509), (" is", -0.241), (" it", -1.0)])
    for question in (golden, strict):
        with running_raw(script(chat(PARIS), chat(PARIS), near)) as child:
            await question.record(child)
            if question is golden:
                await question.replay(child)
            else:
                with pytest.raises(GoldenMismatch, match=r"more than the tolerance of 0\.001"):
                    await question.replay(child)


async def test_tokens_are_compared_by_their_bytes() -> None:
    """Halves of a character all look like U+FFFD: other bytes are another token."""
    golden = Golden()
    first, other = chat([("\ufffd", -0.5), ("a", -0.5)], "\u00e9a"), chat([("\ufffd", -0.5), ("a", -0.5)], "\u00e9a")
    first["choices"][0]["logprobs"]["content"][0]["bytes"] = [0xC3]
    other["choices"][0]["logprobs"]["content"][0]["bytes"] = [0xC4]
    with running_raw(script(first, first, other)) as child:
        await golden.record(child)
        with pytest.raises(GoldenMismatch, match=r"token 1 is '\ufffd' \(bytes c4\) instead of '\ufffd' \(bytes c3\)"):
            await golden.replay(child)


async def test_thoughts_count_where_there_is_nothing_else() -> None:
    """A model that cannot but think gets no further in a few tokens; its thoughts are compared."""
    golden = Golden()
    thinking = [chat(None, "", reasoning_content=text) for text in ("Let me see.", "Let me see.", "Let us see.")]
    with running_raw(script(*thinking)) as child:
        await golden.record(child)
        with pytest.raises(GoldenMismatch, match="the text differs from character 5 on"):
            await golden.replay(child)


async def test_secrets_are_masked_and_long_answers_cut() -> None:
    """A key that the model repeats is in neither half of the message, nor is all of a long answer."""
    golden = Golden()
    then, now = chat([(f"The key is {KEY}. " + "word " * 500, -0.5)]), chat([(KEY, -0.5)])
    with running_raw(script(then, then, now)) as child:
        await golden.record(child)
        with pytest.raises(GoldenMismatch) as caught:
            await golden.replay(child)
    assert KEY not in str(caught.value)
    assert caught.value.expected.startswith("The key is ")
    assert len(str(caught.value)) < 1400


@pytest.mark.parametrize("flag", ["--no-logprobs", "--reject-logprobs"])
async def test_engines_without_log_probabilities(flag: str, tmp_path: Path) -> None:
    """Left out, or refused with a 400: the text is compared instead."""
    golden, drift = Golden(), tmp_path / "drift"
    with running_fake(flag, "--answer-drift-file", str(drift)) as child:
        await golden.record(child)
        await golden.replay(child)
        drift.touch()
        with pytest.raises(GoldenMismatch, match="the text differs from character 1 on") as caught:
            await golden.replay(child)
    assert (caught.value.expected, caught.value.seen) == ("OK", "Well, something else.")


async def test_another_400_is_no_reason_to_ask_again() -> None:
    """Only a refusal that speaks of log-probabilities changes the question; others fail the record at once."""
    asked: list[str] = []

    def refuse(head: str) -> bytes:
        asked.append(head)
        return http('{"error": {"message": "no such model"}}', "400 Bad Request")

    with running_raw(refuse) as child, pytest.raises(BadAnswer, match=r"HTTP 400.*no such model"):
        await Golden().record(child)
    assert len(asked) == 1


async def test_a_server_that_refuses_the_replay() -> None:
    """No answer at all is not a mismatch: the error is the server's own."""
    golden = Golden()
    with running_fake() as child:
        await golden.record(child)
    with running_fake("--reject-key") as child, pytest.raises(BadAnswer, match="HTTP 401 instead of 200"):
        await golden.replay(child)
