"""Secrets, and the masking of text that may hold them, in logs, events, errors and printed command lines.

Masked as `***`, wherever it stands in a text:

- every known secret: the profile's key, each `Secret`, and what a telling name (`--api-key`, `HF_TOKEN`,
  `DB_PASSWORD`, `X_KEY`, ...) calls one in the command line and in the child's environment, set by the profile or
  inherited from the host, if it has 8 characters or more and, in the environment, is no absolute path;
- the same in other spellings: escaped in JSON or source code, quoted for a URL, in base64 alone or inside of more;
- what stands where secrets stand, known or not: the value of an `Authorization` header of any scheme, what follows
  `Bearer`, the password in `user:password@` of a URL, and the value of a telling name in a URL's query (`?key=`,
  `&api_key=`, `?token=`, ...).

Not masked: an unknown secret anywhere else, such as `password: hunter2` in a line of prose; a known one in a form that
is not listed here (encrypted, hashed, in hex, spread over two lines, in part); files that the server writes itself.
"""

from __future__ import annotations

import base64
import fnmatch
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final
from urllib.parse import quote, quote_plus

from supervisor.credentials import MASK, is_secret_name, is_secret_variable, mask_argv, mask_places, values_in
from supervisor.errors import ProfileError

__all__ = [
    "GUESSED_MIN_CHARS",
    "MASK",
    "Redactor",
    "Secret",
    "inherited_secrets",
    "is_secret_name",
    "is_secret_variable",
    "secrets_in",
    "secrets_named",
]

GUESSED_MIN_CHARS: Final = 8
"""What only a name calls a secret must be so long, because masking a `1` wherever it stands leaves no log to read."""

_BASE64_MIN_CHARS: Final = 8


class Secret:
    """A string that prints as `***`.

    Args:
        value: the secret itself; blank is refused, because a blank key opens a server instead of closing it.
        name: what to call it in errors, never the value.

    Raises:
        ProfileError: the value is empty, white space, or holds an unprintable character (no header could carry it, and
            a log, which is printable, would show it in a form that nobody recognises).
    """

    __slots__ = ("_value",)

    def __init__(self, value: str, *, name: str = "secret") -> None:
        if not isinstance(value, str):
            raise ProfileError(field=name, value=f"({type(value).__name__})", allowed="text")
        if not value.strip():
            raise ProfileError(field=name, value=value, allowed="a non-blank string")
        if not value.isprintable():
            raise ProfileError(field=name, value=MASK, allowed="one line of printable text")
        self._value = value

    def reveal(self) -> str:
        """The secret itself; call it at the last moment, and never into a log."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret({MASK!r})"

    def __str__(self) -> str:
        return MASK

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)


def secrets_in(argv: Sequence[str]) -> tuple[Secret, ...]:
    """The keys that stand literally in a command line, as far as names and `Bearer` tell, if they are long enough."""
    # Servers take several keys with commas in between.
    parts = [part.strip() for value in values_in(argv) for part in (value, *value.split(","))]
    return tuple(Secret(part) for part in dict.fromkeys(parts) if _is_literal(part))


def secrets_named(environment: Mapping[str, str]) -> tuple[Secret, ...]:
    """The values of variables that name a secret, if they are long enough; an absolute path is none."""
    return tuple(
        Secret(value, name=name)
        for name, value in environment.items()
        if is_secret_variable(name) and _is_literal(value.strip()) and not value.startswith("/")
    )


def inherited_secrets(patterns: Sequence[str]) -> tuple[Secret, ...]:
    """The secrets in this process's environment that a child inherits by these names or shell patterns."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }
    return secrets_named(inherited)


def _is_literal(value: str) -> bool:
    filled_in = value.startswith("$") or "{port}" in value or "{host}" in value
    return len(value) >= GUESSED_MIN_CHARS and value.isprintable() and not filled_in


class Redactor:
    """Masks secrets in text: `redactor("Bearer abc")`; the module's docstring says what is masked.

    Args:
        secrets: the known ones.
    """

    def __init__(self, secrets: Iterable[Secret]) -> None:
        forms: set[str] = set()
        for secret in secrets:
            # Servers and headers strip the blanks around a value.
            for value in (secret.reveal(), secret.reveal().strip()):
                forms |= _spellings(value)
        # Longest first: one secret may be the beginning of another.
        self._forms: list[str] = sorted(forms, key=lambda form: (-len(form), form))
        self._pattern = re.compile("|".join(map(re.escape, self._forms))) if forms else None
        self.longest_bytes = max((len(form.encode()) for form in forms), default=0)

    def __call__(self, text: str) -> str:
        for form in self._forms:
            if form in text:  # a few plain searches take less time than one for all forms at once
                assert self._pattern
                text = self._pattern.sub(MASK, text)
                break
        return mask_places(text)

    def cut(self, text: str) -> str:
        """Masks text whose end was cut off, and drops the beginning of a secret that stands at the cut."""
        return mask_places(self._cut_known(text), is_cut=True)

    def _cut_known(self, text: str) -> str:
        if self._pattern is None:
            return text
        drop = 0
        for form in self._forms:
            for size in range(min(len(form) - 1, len(text)), drop, -1):
                if text.endswith(form[:size]):
                    drop = size
                    break
        # Found before anything is masked: a short secret may be the beginning of the long one that is cut here.
        end, begin = len(text) - drop, 0
        out: list[str] = []
        for match in self._pattern.finditer(text):
            if match.start() >= end:
                break
            out += text[begin : match.start()], MASK
            begin = match.end()
        return "".join([*out, text[begin:end]])

    def argv(self, argv: Sequence[str]) -> tuple[str, ...]:
        """A command line fit for a log: known secrets masked, and the values of options and variables that name one."""
        return tuple(map(self, mask_argv(argv)))


def _spellings(value: str) -> set[str]:
    in_json = {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
    slashed = {form.replace("/", "\\/") for form in in_json}  # PHP and some C++ libraries write it so
    in_source = {
        value.replace("\\", "\\\\"),
        value.replace("\\", "\\\\").replace("'", "\\'"),
        repr(value)[1:-1],
        ascii(value)[1:-1],
    }
    in_url = {quote(value, ""), quote(value), quote_plus(value)}
    lower = {re.sub("%..", lambda match: match[0].lower(), form) for form in in_url}
    return {value} | in_json | slashed | in_source | in_url | lower | _base64_forms(value)


def _base64_forms(value: str) -> set[str]:
    """The value in base64, alone and as a part of something longer, where it may begin at any of three offsets."""
    data = value.encode(errors="surrogatepass")
    forms: set[str] = set()
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for offset in range(3):
            # Without the characters that hold bits of what stands before or after.
            begin, end = -(-offset * 8 // 6), (offset + len(data)) * 8 // 6
            forms.add(encode(bytes(offset) + data).decode()[begin:end])
    return {form for form in forms if len(form) >= _BASE64_MIN_CHARS}
