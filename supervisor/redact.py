"""Secrets, and the masking of text that may hold them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Final
from urllib.parse import quote, quote_plus

from supervisor.errors import ProfileError

MASK: Final = "***"

# Options whose value is a secret by name, wherever the value came from.
_SECRET_NAME: Final = re.compile(r"(?i)((^|[-_])(api-?_?key|access-?_?key|token|secret)|passw(or)?d)$")


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


class Redactor:
    """Masks known secrets in text: `redactor("Bearer abc")`.

    Masked as well are the forms in which a server would print them: JSON-escaped and URL-quoted.
    """

    def __init__(self, secrets: Iterable[Secret]) -> None:
        forms: set[str] = set()
        for secret in secrets:
            # Servers and headers strip the blanks around a value.
            for value in (secret.reveal(), secret.reveal().strip()):
                forms |= {value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
                forms |= {quote(value, ""), quote(value), quote_plus(value)}
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
            elif (equals or option.startswith("-")) and is_secret_name(option):
                out.append(f"{option}={MASK}" if equals else option)
                mask_next = not equals
            else:
                out.append(self(arg))
        return tuple(out)
