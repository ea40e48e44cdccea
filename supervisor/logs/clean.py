"""Text that is fit to be shown: without escape sequences, control characters and secrets."""

from __future__ import annotations

import codecs
import re
from typing import Final

from supervisor.redact import Redactor

__all__ = ["LineCleaner", "clean", "without_controls"]

_DECODER: Final = codecs.getincrementaldecoder("utf-8")
# ECMA-48: control sequences, operating system commands, and two-byte escapes; also one that the text's end cuts off.
_ANSI: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*(?:[@-~]|\Z)|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_]|\Z)")
_CONTROLS: Final = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)]) | {0x09: " "}


def without_controls(line: str) -> str:
    """The text of a line without escape sequences and control characters; a tab becomes a blank."""
    return _ANSI.sub("", line).translate(_CONTROLS)


def clean(text: str) -> str:
    """Text without escape sequences and control characters, line breaks excepted: fit for a terminal."""
    return text if text.isprintable() else "\n".join(map(without_controls, text.split("\n")))


class LineCleaner:
    """Makes lines of a server fit to be shown.

    Args:
        redact: masks secrets.
        max_chars: of a line that is shown.
    """

    def __init__(self, redact: Redactor, max_chars: int) -> None:
        self._redact = redact
        self._max_chars = max_chars

    def decode(self, line: bytes, *, cut: bool) -> str:
        """The text of a line; `cut`: its end is missing."""
        # Not final where it is cut: half a character would hide the beginning of a secret before it.
        text = _DECODER("replace").decode(line) if cut else line.decode("utf-8", "replace")
        return self.tidy(text.rstrip("\r"), cut=cut)

    def tidy(self, text: str, *, cut: bool) -> str:
        """The same for a line that is text already."""
        if not text.isprintable():
            text = without_controls(text.rpartition("\r")[2])  # \r: what a terminal would show
        text = self._redact.cut(text) if cut else self._redact(text)
        return text[: self._max_chars].rstrip()
