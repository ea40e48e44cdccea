"""A secret is not printed: not by accident, not in another spelling, not in part where a line is cut."""

from __future__ import annotations

import base64
import json
import re
import sys
from urllib.parse import quote, quote_plus

import anyio
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from supervisor import Hooks, supervise
from supervisor.logs.clean import LineCleaner
from supervisor.logs.lines import LineSplitter
from supervisor.redact import (
    MASK,
    Redactor,
    Secret,
    inherited_secrets,
    is_secret_name,
    secrets_in,
    secrets_named,
)
from support import FAKE, Recorder, fake_profile

KEY = "sk-0123456789abcdef"
PIECE = 4  # characters of a secret's beginning that give something away

# The text around a secret is made of other characters, also than base64 has, so that whatever of the secret is found is
# the secret's.
AROUND = st.text("«» .:\t", max_size=60)
SECRETS = st.text('abcdefghijk0123456789-_/+&"é漢', min_size=PIECE, max_size=40)


def cleaned(data: list[bytes], *secrets: str, max_line_bytes: int = 80) -> list[str]:
    """The lines that a pump with these secrets would keep, the unfinished one included."""
    redact = Redactor(map(Secret, secrets))
    cleaner = LineCleaner(redact, max_line_bytes)
    splitter = LineSplitter(max_line_bytes + redact.longest_bytes)
    shown = [cleaner.decode(line, cut=cut) for chunk in data for line, cut in splitter.feed(chunk)]
    return [*shown, cleaner.decode(splitter.partial(), cut=True)]


@given(
    before=AROUND,
    secret=SECRETS,
    after=AROUND,
    where=st.integers(0, 10_000),
    fill=st.integers(0, 120),
    tty=st.booleans(),
)
@example(before="", secret="abcdé", after="", where=5, fill=0, tty=False)  # cut inside of a character
@example(before="", secret="abcdefgh", after="", where=9, fill=0, tty=True)  # cut inside of an escape sequence
def test_no_cut_leaves_the_beginning_of_a_secret(
    before: str, secret: str, after: str, where: int, fill: int, tty: bool
) -> None:
    """Wherever the stream ends or a line grows too long, at any byte, no beginning of a secret is left at the cut."""
    printed = secret[:4] + "\x1b[31m" + secret[4:] if tty else secret
    data = ("x" * fill + before + printed + after).encode()
    for end in (where % (len(data) + 1), len(data)):
        for line in cleaned([data[:end]], secret):
            assert secret[:PIECE] not in line


@given(AROUND, SECRETS, AROUND, st.lists(st.integers(0, 200), max_size=6))
def test_chunk_borders_hide_no_secret(before: str, secret: str, after: str, borders: list[int]) -> None:
    """The child may write a secret in as many pieces as it likes: the line is the same, and masked."""
    data = f"{before}{secret}{after}\n".encode()
    cuts = sorted({min(border, len(data)) for border in borders})
    chunks = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    lines = cleaned(chunks, secret, max_line_bytes=400)
    assert lines == cleaned([data], secret, max_line_bytes=400)
    assert secret[:PIECE] not in "".join(lines)
    assert MASK in lines[0]


@given(AROUND, SECRETS, SECRETS, st.integers(0, 80))
@example(before="", first="abcd", extra="efghijk0123456789", size=12)
@example(before="x", first="abcd", extra="efghijk0123456789", size=1)
def test_a_cut_secret_that_begins_with_another_secret_leaves_nothing(
    before: str, first: str, extra: str, size: int
) -> None:
    """A short secret may be the beginning of a long one: masking the short one does not lay the rest bare."""
    long = first + extra
    text = Redactor([Secret(first), Secret(long)]).cut(before + long[: min(size, len(long) - 1)])
    assert text == before


@given(AROUND, st.sets(SECRETS, max_size=3))
def test_text_without_secrets_is_left_alone(text: str, secrets: set[str]) -> None:
    """Masking changes nothing else, at a cut or elsewhere."""
    redact = Redactor(map(Secret, secrets))
    assert redact(text) == redact.cut(text) == text


def test_a_whole_secret_at_a_cut_is_masked() -> None:
    """What is complete is shown as a mask, also when its end looks like its beginning."""
    redact = Redactor([Secret("abc-def-abc")])
    assert redact.cut("key abc-def-abc") == f"key {MASK}"
    assert redact.cut("key abc-def-abc abc-d") == f"key {MASK} "


def test_the_longest_secret_wins() -> None:
    """Of two secrets of which one begins like the other, the whole longer one is masked."""
    redact = Redactor([Secret("abcd"), Secret("abcdefgh")])
    assert redact("1 abcd 2 abcdefgh 3 abcdef") == f"1 {MASK} 2 {MASK} 3 {MASK}ef"


@pytest.mark.parametrize("value", ['a"b\\c/d+e=', "pass wörd", "a&b<c>", "ключ-漢字", "x" * 500])
def test_other_spellings_are_masked(value: str) -> None:
    """A server prints its key JSON-escaped, or quoted for a URL; the mask covers these forms too."""
    redact = Redactor([Secret(value)])
    forms = [
        value,
        json.dumps(value),
        json.dumps(value, ensure_ascii=False),
        quote(value),
        quote(value, safe=""),
        quote_plus(value),
        json.dumps(value).replace("/", "\\/"),
        re.sub("%..", lambda escape: escape[0].lower(), quote(value, safe="")),
    ]
    for form in forms:
        assert redact(f"<{form}>") in (f"<{MASK}>", f'<"{MASK}">')
        assert redact.longest_bytes >= len(form.strip('"').encode())


def test_blanks_around_a_secret_do_not_save_it_from_the_mask() -> None:
    """Headers lose the blanks around a value, so a server prints the key without them."""
    assert Redactor([Secret(f" {KEY} ")])(f"[{KEY}]") == f"[{MASK}]"


@pytest.mark.parametrize(
    ("given_", "shown"),
    [
        (["s", "--api-key", "x", "--port", "1"], ["s", "--api-key", MASK, "--port", "1"]),
        (["s", "--api-key=x"], ["s", f"--api-key={MASK}"]),
        (["s", "--api_key=x=y"], ["s", f"--api_key={MASK}"]),
        (["s", "--API-KEY", "x"], ["s", "--API-KEY", MASK]),
        (["s", "--hf-token", "x"], ["s", "--hf-token", MASK]),
        (["s", "-token", "x"], ["s", "-token", MASK]),
        (["s", "--password", ""], ["s", "--password", MASK]),
        (["s", "--client-secret", "x"], ["s", "--client-secret", MASK]),
        (["s", "--api-key"], ["s", "--api-key"]),
        (["env", "HF_TOKEN=x", "s"], ["env", f"HF_TOKEN={MASK}", "s"]),
        (["s", "--max-tokens", "5"], ["s", "--max-tokens", "5"]),
        (["s", "--api-key-file", "k.txt"], ["s", "--api-key-file", "k.txt"]),
        (["s", "--tokenizer=x"], ["s", "--tokenizer=x"]),
        (["s", "token", "x"], ["s", "token", "x"]),
        (["s", f"--header=Bearer {KEY}"], ["s", f"--header=Bearer {MASK}"]),
        (["s", f"--url=http://h/?k={KEY}&p"], ["s", f"--url=http://h/?k={MASK}&p"]),
    ],
)
def test_argv(given_: list[str], shown: list[str]) -> None:
    """A command line is masked by the names of its options, and wherever a known secret stands."""
    assert Redactor([Secret(KEY)]).argv(given_) == tuple(shown)


@pytest.mark.parametrize("value", ["it's-\\-a-key", 'it\'s "both"', "back\\slash", "wörd'"])
def test_a_secret_in_source_form_is_masked(value: str) -> None:
    """A server that prints its settings as a literal escapes quotes and backslashes; the mask knows these spellings."""
    redact = Redactor([Secret(value)])
    for form in (repr(value), ascii(value), value.replace("\\", "\\\\").replace("'", "\\'")):
        assert redact(f"<{form[1:-1] if form[0] == form[-1] else form}>") == f"<{MASK}>"


@pytest.mark.parametrize(
    ("given_", "shown", "secrets"),
    [
        (["curl", "-H", "Authorization: Bearer abcdefgh1"], ["curl", "-H", f"Authorization: Bearer {MASK}"], 1),
        (["curl", "--header=Authorization: bearer abc"], ["curl", f"--header=Authorization: bearer {MASK}"], 0),
        (["curl", "-H", "X-Api-Key: abcdefgh1"], ["curl", "-H", f"X-Api-Key: {MASK}"], 1),
        (["s", "--api-keys", "abcdefgh1,abcdefgh2"], ["s", "--api-keys", MASK], 3),
        (["s", "--key", "abcdefgh1"], ["s", "--key", MASK], 1),
        (["s", "--key=abc"], ["s", f"--key={MASK}"], 0),
        (["sh", "-c", "cd /; API_KEY=abcdefgh1 cmd"], ["sh", "-c", f"cd /; API_KEY={MASK} cmd"], 1),
        (["sh", "-c", "s --api-key 'abcdefgh1' -v"], ["sh", "-c", f"s --api-key '{MASK}' -v"], 1),
        (["s", '{"api_key": "abcdefgh1", "n": 1}'], ["s", f'{{"api_key": "{MASK}", "n": 1}}'], 1),
        (["s", "http://h/?token=abcdefgh1&n=1"], ["s", f"http://h/?token={MASK}"], 2),
        (["sh", "-c", 'x -H "Authorization: Bearer $LONG_VARIABLE"'], None, 0),
        (["s", "--token", "--no-such-value"], None, 0),
        (["s", "--key-file", "some-file"], ["s", "--key-file", "some-file"], 0),
        (["sh", "-c", "MAX_TOKENS=5 keyboard=abcdefgh1"], ["sh", "-c", "MAX_TOKENS=5 keyboard=abcdefgh1"], 0),
    ],
)
def test_keys_inside_of_a_command_line(given_: list[str], shown: list[str] | None, secrets: int) -> None:
    """Headers, scripts, JSON and queries in one argument lose what they call a key, and the long ones become known."""
    found = secrets_in(given_)
    assert len(found) == secrets, [secret.reveal() for secret in found]
    assert not secrets or "abcdefgh1" in [secret.reveal() for secret in found]
    if shown is not None:
        assert Redactor([]).argv(given_) == tuple(shown)


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("API_KEY", True),
        ("apikey", True),
        ("OPENAI_API_KEY", True),
        ("HF_TOKEN", True),
        ("TOKEN", True),
        ("DB_PASSWORD", True),
        ("API_KEYS", True),
        ("--key", True),
        ("SECRET_KEY", True),
        ("TOKENS", False),
        ("MAX_TOKENS", False),
        ("API_KEY_FILE", False),
        ("KEYBOARD", False),
        ("", False),
    ],
)
def test_secret_names(name: str, secret: bool) -> None:
    """What the name of an option or variable says about its value."""
    assert is_secret_name(name) is secret


def test_no_secrets_cost_nothing() -> None:
    """Without secrets text passes as it is."""
    redact = Redactor([])
    assert (redact("a"), redact.cut("a"), redact.longest_bytes) == ("a", "a", 0)


# ------------------------------------------------------------------------------------- places, known or not


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET /v1/models?key=abc123 200", f"GET /v1/models?key={MASK} 200"),
        ("GET /x?a=1&api_key=abc&b=2", f"GET /x?a=1&api_key={MASK}&b=2"),
        ('"url": "http://h/?access_token=abc"', f'"url": "http://h/?access_token={MASK}"'),
        ("https://h/b?X-Amz-Signature=ab12&X=1", f"https://h/b?X-Amz-Signature={MASK}&X=1"),
        ("from postgres://bob:hunter2@db:5432/x now", f"from postgres://bob:{MASK}@db:5432/x now"),
        ("http://:hunter2@h/", f"http://:{MASK}@h/"),
        ("Authorization: Basic dXNlcjpwYXNz", f"Authorization: Basic {MASK}"),
        ("authorization: bearer abc", f"authorization: bearer {MASK}"),
        ("{'Authorization': 'Bearer abc', 'x': 1}", f"{{'Authorization': 'Bearer {MASK}', 'x': 1}}"),
        ('"{\\"authorization\\": \\"Basic abc\\"}"', f'"{{\\"authorization\\": \\"Basic {MASK}\\"}}"'),
        ("(b'authorization', b'Bearer abc')", f"(b'authorization', b'Bearer {MASK}')"),
        ("Proxy-Authorization: Digest abc", f"Proxy-Authorization: Digest {MASK}"),
        ("authorization: sk-12345678", f"authorization: {MASK}"),
        ("AUTHORIZATION: Basic dXNlcjpwYXNz", f"AUTHORIZATION: Basic {MASK}"),
        ("HTTP_AUTHORIZATION=Basic dXNlcjpwYXNz", f"HTTP_AUTHORIZATION=Basic {MASK}"),
        ("map[Authorization:[Basic dXNlcjpwYXNz]]", f"map[Authorization:[Basic {MASK}"),
        ('{"authorization": ["Basic dXNlcjpwYXNz"]}', f'{{"authorization": ["Basic {MASK}"]}}'),
        ("Authorization: Key abcdef", f"Authorization: Key {MASK}"),
        ('Authorization: Digest username="u", response="6629"', f"Authorization: Digest {MASK}"),
        ("Authorization: AWS4-HMAC-SHA256 Credential=AK, Signature=fe5f", f"Authorization: AWS4-HMAC-SHA256 {MASK}"),
        ("BEARER abc123def456ghi", f"BEARER {MASK}"),
        ("sent Bearer sk-12345678 to it", f"sent Bearer {MASK} to it"),
    ],
)
def test_what_stands_where_secrets_stand_is_masked(text: str, shown: str) -> None:
    """Headers, queries and user parts of URLs lose their secrets, though nobody named them."""
    assert Redactor([])(text) == shown
    assert Redactor([]).cut(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "authorization: required",
        "bearer authentication is enabled",
        "max_tokens=5 n_keys=3 key=value",
        "GET /v1/models?limit=5&monkey=1",
        "EOS token = 106 '<end_of_turn>'",
        "server is listening on http://127.0.0.1:8080",
        "mail me@example.org about http://h:80/x",
        "http://h:80/path@2x.png",
    ],
)
def test_a_log_stays_readable(text: str) -> None:
    """Words that only resemble a secret's place are left alone, at a cut too."""
    assert Redactor([])(text) == Redactor([]).cut(text) == text


@given(
    st.sampled_from(["GET /?key=", "a&api_key=", "http://bob:", "Authorization: Basic ", "Authorization: Bearer "]),
    st.text("abcdefghij0123456789+/=.~_-", min_size=8, max_size=60),
    st.integers(0, 60),
)
def test_no_cut_lays_bare_what_stands_where_secrets_stand(place: str, secret: str, where: int) -> None:
    """Wherever a line is cut, nothing is left of a secret that nobody named, a port in its place excepted."""
    part = secret[: min(where, len(secret))]
    shown = Redactor([]).cut(place + part)
    if not (place.startswith("http") and (part.isdigit() or "/" in part)):
        assert shown == place + (MASK if part else "")


@given(st.text(max_size=3), SECRETS.filter(lambda text: len(text) >= 8), st.text(max_size=3), st.booleans())
def test_a_secret_in_base64_is_masked(before: str, secret: str, after: str, url: bool) -> None:
    """Alone, or with a user before it and anything behind it, at any of the three offsets."""
    encode = base64.urlsafe_b64encode if url else base64.b64encode
    text = encode(f"{before}{secret}{after}".encode()).decode()
    shown = Redactor([Secret(secret)])(f"<{text}>")
    assert MASK in shown
    for size in (PIECE * 3, PIECE * 2):  # what is left of it decodes to no piece of the secret
        assert encode(secret.encode()).decode()[2 : 2 + size] not in shown


@pytest.mark.parametrize(
    "piece", ["?key=", "a&b=@", "://a:@", "@://", "Authorization: ", "uthorization", "Bearer ", "earer 1", "token_=&"]
)
def test_no_text_keeps_the_masking_busy(piece: str) -> None:
    """Text made to trouble a regular expression, a megabyte of it, is masked before the test's timeout ends."""
    redact = Redactor([Secret(KEY)])
    text = piece * ((1 << 20) // len(piece))
    redact(text)
    redact.cut(text)


def test_variables_with_telling_names_are_secrets() -> None:
    """Longer values of such names are known; switches and paths are not."""
    named = {
        "HF_TOKEN": "hf_12345678",
        "OPENAI_KEY": "sk-12345678",
        "DB_PASSWORD": "hunter2-hunter2",
        "GIT_PASS": "hunter2-hunter3",
        "MY_CREDENTIALS": "user:12345678",
        "USE_TOKEN": "1",
        "TLS_KEY": "/etc/ssl/private/key.pem",
        "PWD": "somewhere-else",
        "MAX_TOKENS": "123456789",
        "LANG": "en_GB.UTF-8",
        "ODD_TOKEN": "broken\nbroken",
    }
    assert {secret.reveal() for secret in secrets_named(named)} == {
        "hf_12345678", "sk-12345678", "hunter2-hunter2", "hunter2-hunter3", "user:12345678"
    }  # fmt: skip


def test_only_what_the_child_inherits_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret that never reaches the child needs no mask in its log."""
    monkeypatch.setenv("A_TOKEN", "made-up-1")
    monkeypatch.setenv("B_TOKEN", "made-up-2")
    assert Secret("made-up-1") in inherited_secrets(("A_*",))
    assert Secret("made-up-2") not in inherited_secrets(("A_*",))


@pytest.mark.anyio
async def test_an_inherited_secret_reaches_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a server prints of the environment that it inherited is masked by the variable's name."""
    monkeypatch.setenv("HOUSE_TOKEN", "made-up-token-1")
    seen = Recorder()
    async with anyio.create_task_group() as tasks:
        server = (sys.executable, "-I", "-S", str(FAKE), "--port", "{port}")
        profile = fake_profile(command=("sh", "-c", 'echo "it is $HOUSE_TOKEN"; exec "$@"', "sh", *server))
        await tasks.start(supervise, profile, Hooks(observers=(seen,)))
        tasks.cancel_scope.cancel()
    assert f"it is {MASK}" in seen.lines()
    assert "made-up-token" not in repr(seen.events)
