"""Environment variables that a user writes as `KEY=VALUE`."""

from __future__ import annotations

from collections.abc import Sequence

from supervisor.errors import ProfileError
from supervisor.redact import GUESSED_MIN_CHARS, MASK, Secret, is_secret_name

__all__ = ["variables"]


def variables(pairs: Sequence[str]) -> dict[str, str | Secret]:
    """`KEY=VALUE` texts as a mapping; the value of a key, token, secret or password, by its name, becomes a `Secret`.

    A value of fewer than 8 characters does not: it is a switch (`USE_TOKEN=1`), and the log would be unreadable if
    every `1` in it were masked.

    Raises:
        ProfileError: a text has no `=`.
    """
    found: dict[str, str | Secret] = {}
    for text in pairs:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ProfileError(field="--env", value=MASK, allowed="KEY=VALUE")
        secret = is_secret_name(name) and len(value.strip()) >= GUESSED_MIN_CHARS
        found[name] = Secret(value, name=name) if secret else value
    return found
