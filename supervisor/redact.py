"""Secrets, and the masking of text that may hold them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Final
from urllib.parse import quote, quote_plus

from supervisor.errors import ProfileError

MASK: Final = "***"

GUESSED_MIN_CHARS: Final = 8
"""What only a name calls a secret must be so long, because masking a `1` wherever it stands leaves no log to read."""

# Options whose value is a secret by name, wherever the value came from.
_NAME: Final = r"(?:(?:[\w-]*[-_])?(?:(?:api|access|secret)[-_]?keys?|token|secret)|[\w-]*passw(?:or)?d|--?key)"
_SECRET_NAME: Final = re.compile(rf"(?i)(?<![\w-]){_NAME}$")
# The same inside of one argument: a header, a shell's script, JSON, a query. The value is the second group.
_VALUE: Final = r"""("[^"]*"|'[^']*'|[^\s"',;&]+)"""
_EMBEDDED: Final = (
    re.compile(rf"""(?i)((?<![\w-]){_NAME}(?:["']?\s*[=:]\s*(?:bearer\s+)?)){_VALUE}"""),
    re.compile(rf"(?i)((?<![\w-])(?=-){_NAME}\s+){_VALUE}"),
    re.compile(r"""(?i)(\bbearer\s+)([^\s"',;&]+)"""),
)


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


def is_secret_name(name: str) -> bool:
    """Whether an option or variable of this name holds a secret (`--api-key`, `HF_TOKEN`, ...)."""
    return _SECRET_NAME.search(name) is not None


def secrets_in(argv: Sequence[str]) -> tuple[Secret, ...]:
    """The keys that stand literally in a command line, as far as names and `Bearer` tell, if they are long enough."""
    found: list[str] = []
    for arg, following in zip(argv, [*argv[1:], ""], strict=True):
        option, equals, value = arg.partition("=")
        if _has_value(option, equals):
            # An option that follows is no value: the one before it is a switch.
            found.append(value if equals else "" if following.startswith("-") else following)
        found += [match[2].strip("\"'") for pattern in _EMBEDDED for match in pattern.finditer(arg)]
    # Servers take several keys with commas in between.
    parts = [part.strip() for value in found for part in (value, *value.split(","))]
    return tuple(Secret(part) for part in dict.fromkeys(parts) if _is_literal(part))


def _has_value(option: str, equals: str) -> bool:
    one_word = not any(map(str.isspace, option))
    return one_word and bool(equals or option.startswith("-")) and is_secret_name(option)


def _is_literal(value: str) -> bool:
    filled_in = value.startswith("$") or "{port}" in value or "{host}" in value
    return len(value) >= GUESSED_MIN_CHARS and value.isprintable() and not filled_in


class Redactor:
    """Masks known secrets in text: `redactor("Bearer abc")`.

    Masked as well are the forms in which a server would print them: JSON-escaped, quoted as source code, URL-quoted.
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
        return self._pattern.sub(MASK, text) if self._pattern else text

    def cut(self, text: str) -> str:
        """Masks text whose end was cut off, and drops the beginning of a secret that stands at the cut."""
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
        out: list[str] = []
        mask_next = False
        for arg in argv:
            option, equals, _ = arg.partition("=")
            if mask_next:
                out.append(MASK)
                mask_next = False
            elif _has_value(option, equals):
                out.append(f"{option}={MASK}" if equals else option)
                mask_next = not equals
            else:
                shown = self(arg)
                for pattern in _EMBEDDED:
                    shown = pattern.sub(_mask_value, shown)
                out.append(shown)
        return tuple(out)


def _mask_value(match: re.Match[str]) -> str:
    quote_mark = match[2][0] if match[2][0] in "\"'" else ""
    return f"{match[1]}{quote_mark}{MASK}{quote_mark}"


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
    return {value} | in_json | slashed | in_source | in_url | lower
