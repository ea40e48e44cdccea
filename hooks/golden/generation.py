"""What a model generated, token by token, and what makes two generations differ."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from hooks.http.answer import Answer

__all__ = ["Generation", "Token"]

# The likeliest of n tokens has at least the probability 1/n, and no vocabulary holds e^20 (485 million) tokens.
_LOWEST_LOGPROB: Final = -20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One token that was generated.

    Attributes:
        text: as the engine shows it; parts of a character may all look the same.
        logprob: natural logarithm of its probability.
        raw: its bytes, where the engine tells them.
    """

    text: str
    logprob: float
    raw: tuple[int, ...] | None = None

    def same(self, other: Token) -> bool:
        """Whether it is the same token, whatever its probability."""
        return (self.text, self.raw) == (other.text, other.raw)


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One greedy answer.

    Attributes:
        text: the content; the thoughts of a model that got no further.
        tokens: what it consists of; empty when the engine gave no log-probabilities.
    """

    text: str
    tokens: tuple[Token, ...] = ()

    @classmethod
    def read(cls, answer: Answer) -> Generation:
        """The generation in the answer of a chat completion.

        Raises:
            BadAnswer: the answer is none, its text is blank or degenerate, or a log-probability is no number that the
                token of a greedy choice can have.
        """
        text = answer.text({"content": answer.message().get("content"), **answer.thoughts()})
        given = answer.choice().get("logprobs")
        rows = given.get("content") if isinstance(given, dict) else None
        if not rows:
            return cls(text=text)
        if not isinstance(rows, list):
            raise answer.bad(f"logprobs.content is of type {type(rows).__name__}, not a list")
        return cls(text=text, tokens=tuple(_token(answer, place, row) for place, row in enumerate(rows, 1)))

    def difference(self, other: Generation, tolerance: float) -> str | None:
        """How `other` differs from this one: a sentence without its period, or None when it does not.

        Args:
            other: what came later.
            tolerance: how far apart the log-probabilities of a token may be.
        """
        if self.tokens and not other.tokens:
            return "log-probabilities were there before, and now there are none"
        if self.tokens and (wrong := self._other_token(other) or self._other_logprob(other, tolerance)):
            return wrong
        if self.text != other.text:
            pairs = enumerate(zip_longest(self.text, other.text), 1)
            place = next(place for place, (old, new) in pairs if old != new)
            return f"the text differs from character {place} on"
        return None

    def _other_token(self, other: Generation) -> str | None:
        for place, (old, new) in enumerate(zip_longest(self.tokens, other.tokens), 1):
            if old is None or new is None or not old.same(new):
                return f"token {place} is {_show(new)} instead of {_show(old)}"
        return None

    def _other_logprob(self, other: Generation, tolerance: float) -> str | None:
        pairs = list(enumerate(zip(self.tokens, other.tokens, strict=True), 1))
        place, (old, new) = max(pairs, key=lambda pair: abs(pair[1][0].logprob - pair[1][1].logprob))
        apart = abs(old.logprob - new.logprob)
        if apart <= tolerance:
            return None
        return (
            f"the tokens are the same, but the log-probability of token {place}, {_show(old)}, is {new.logprob:.4f} "
            f"instead of {old.logprob:.4f}: {apart:.4f} apart, more than the tolerance of {tolerance:g}"
        )


def _show(token: Token | None) -> str:
    if token is None:
        return "the end"
    lossy = token.raw is not None and "\ufffd" in token.text
    return f"{token.text!r} (bytes {bytes(token.raw or ()).hex()})" if lossy else repr(token.text)


def _token(answer: Answer, place: int, row: object) -> Token:
    """One entry of `logprobs.content`."""
    text = row.get("token") if isinstance(row, dict) else None
    if not isinstance(row, dict) or not isinstance(text, str):
        raise answer.bad(f"entry {place} of logprobs.content names no token")
    value, raw = row.get("logprob"), row.get("bytes")
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not math.isfinite(number):
        raise answer.bad(f"the log-probability of token {place} ({text!r}) is {value}: numbers went wrong in the model")
    if not _LOWEST_LOGPROB <= number <= 0.001:  # a rounded sum may exceed 0 by a hair
        raise answer.bad(
            f"the log-probability of token {place} ({text!r}) is {number:g}, which the likeliest token never has"
        )
    whole = isinstance(raw, list) and all(type(byte) is int and 0 <= byte <= 255 for byte in raw)
    return Token(text=text, logprob=number, raw=tuple(raw) if isinstance(raw, list) and whole else None)
