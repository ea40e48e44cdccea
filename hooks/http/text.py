"""Check that generated text is plausible (not blank, not one token over and over), and shorten it for messages."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["BLANK", "flaw", "plain", "shorten"]

BLANK: Final = "is blank"

# What broken kernels and corrupt weights make of models: a token that no training text holds, again and again.
_PLACEHOLDERS: Final = re.compile(r"(?:<(?:unused\d+|pad|unk|eos|bos|\|endoftext\|)>)+")


def flaw(text: str) -> str | None:
    """What shows that no working model wrote this text: a phrase for after a noun, or None.

    White space and unprintable characters do not count. Refused are a text without anything else (`BLANK`), one
    character repeated (from the fourth on: `OK`, `!!` and `...` are answers), replacement characters alone (broken
    UTF-8), and tokens that stand for nothing (`<pad>`, `<unused49>`).
    """
    visible = "".join(c for c in text if c.isprintable() and c != " ")
    if not visible:
        return BLANK
    if not visible.strip("\ufffd"):
        return "holds nothing but replacement characters (U+FFFD)"
    if len(visible) >= 4 and not visible.strip(visible[0]):
        return f"is {visible[0]!r} repeated {len(visible)} times"
    if _PLACEHOLDERS.fullmatch(visible):
        return f"holds nothing but placeholder tokens ({shorten(visible, 40)})"
    return None


def plain(value: object) -> str | None:
    """The text of a content: a string, or a list of parts that hold one each. None when it is neither."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, dict) for part in value):
        return "".join(str(part.get("text") or "") for part in value)
    return None


def shorten(text: str, limit: int = 300) -> str:
    """At most `limit` characters, on one line: white space runs become a space, the middle of a long text goes.

    Unprintable characters become U+FFFD: a body may hold escape codes, and lone surrogates that cannot be written.
    """
    text = "".join(c if c.isprintable() else "\ufffd" for c in " ".join(text.split()))
    half = (limit - 5) // 2
    return text if len(text) <= limit else f"{text[:half]} ... {text[-half:]}"
