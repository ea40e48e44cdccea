"""The answer of a model server, and the judgement whether it is one.

HTTP 200 is not enough: a server that came up wrong answers 200 with an error object, with nothing, or with one token
for ever. An `Answer` gives out what must be in it, and `BadAnswer` says what was there instead.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NoReturn

from hooks.http.text import BLANK, flaw, plain, shorten
from supervisor.dialect import Dialect

if TYPE_CHECKING:
    from collections.abc import Mapping

    from supervisor.redact import Redactor

__all__ = ["Answer", "BadAnswer", "thoughts_of"]

_PLAIN: Final = Dialect()


@dataclass(eq=False)
class BadAnswer(Exception):
    """The server sent no answer, or one that no working server gives.

    Attributes:
        reason: what is wrong, redacted.
        status: the HTTP status; None when none came.
        body: as much of it as fits in a message: white space normalised, the middle cut out, redacted.
    """

    reason: str
    status: int | None
    body: str

    def __post_init__(self) -> None:
        super().__init__(self.reason, self.status, self.body)  # pickle rebuilds an exception from its args

    def __str__(self) -> str:
        if self.status is None:
            return f"{self.reason}."
        return f"{self.reason}. Seen: HTTP {self.status}, {self.body or 'an empty body'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer over HTTP, of bounded size. A method raises `BadAnswer` when the answer lacks what it returns.

    Attributes:
        status: the HTTP status; None when none came.
        body: the text as it came, not redacted.
        redact: masks secrets in what goes into an error.
        whole: False when the body was cut off, so that its end may be a part of a secret.
        dialect: how the engine speaks that answered.
    """

    status: int | None
    body: str = field(repr=False)
    redact: Redactor = field(repr=False, compare=False)
    whole: bool = True
    dialect: Dialect = field(default=_PLAIN, repr=False, compare=False)

    @property
    def excerpt(self) -> str:
        """The body, fit for a message."""
        return shorten(self.redact(self.body) if self.whole else self.redact.cut(self.body))

    def bad(self, reason: str) -> BadAnswer:
        """The error that says why this answer is bad; `reason` is redacted here."""
        return BadAnswer(self.redact(reason).rstrip("."), self.status, self.excerpt)

    def data(self) -> dict[str, Any]:
        """The JSON object of a 200 that holds no error."""
        if self.status != 200:
            raise self.bad(f"the server answered HTTP {self.status} instead of 200")
        try:
            data = json.loads(self.body, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            html = self.body.lstrip()[:1] == "<"
            what = "a page of HTML, so another program may listen there" if html else f"not valid JSON ({error})"
            raise self.bad(f"the answer is {what}") from error
        if not isinstance(data, dict):
            raise self.bad("the answer is JSON but not an object")
        # A good answer of /v1/responses holds `"error": null`.
        refusal = data.get("error") or (data if data.get("object") == "error" else None)
        if refusal:
            message = refusal.get("message") if isinstance(refusal, dict) else refusal
            raise self.bad(f"the answer is an error: {shorten(self.redact(str(message)))}")
        return data

    def choice(self) -> dict[str, Any]:
        """`choices[0]`."""
        choices = self.data().get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            raise self.bad("the answer has no choices")
        return choices[0]

    def message(self) -> dict[str, Any]:
        """`choices[0].message`."""
        message = self.choice().get("message")
        if not isinstance(message, dict):
            raise self.bad("choices[0] has no message")
        return message

    def content(self) -> str:
        """`choices[0].message.content`, which is a text that a working model may have written."""
        message = self.message()
        return self.text({"content": message.get("content")})

    def thoughts(self) -> dict[str, object]:
        """What the model thought, by the field of the message that holds it; empty when no field holds anything."""
        return thoughts_of(self.message(), self.dialect)

    def written(self) -> str:
        """The message's content, or its thoughts where the content is blank."""
        # Without thoughts the error names the field in which they were expected.
        thoughts = self.thoughts() or dict.fromkeys(self.dialect.thoughts[:1])
        return self.text({"content": self.message().get("content"), **thoughts})

    def text(self, parts: Mapping[str, object]) -> str:
        """The first part that is not blank; no part may be text that only a broken model writes.

        Args:
            parts: values from the answer by the names to use in an error, the most wanted one first.
        """
        texts = {name: plain(value) for name, value in parts.items()}
        for name, text in texts.items():
            if text is None and parts[name] is not None:
                raise self.bad(f"{name} is of type {type(parts[name]).__name__}, not text")
        written = {name: text for name, text in texts.items() if text and flaw(text) != BLANK}
        for name, text in written.items():
            if wrong := flaw(text):
                raise self.bad(f"{name} {wrong}")
        if not written:
            raise self.bad(f"{' and '.join(parts)} {'is' if len(parts) == 1 else 'are'} {BLANK[3:]}{self.hint()}")
        return next(iter(written.values()))

    def hint(self) -> str:
        """Why something may be missing: a phrase in brackets, or an empty text when the answer does not show it."""
        try:
            choice = self.choice()
        except BadAnswer:
            return ""
        message = choice.get("message")
        thought = isinstance(message, dict) and thoughts_of(message, self.dialect)
        if choice.get("finish_reason") == "length":
            spent = " and was spent on thinking" if thought else ""
            return f" (max_tokens was reached{spent}: raise it{', or turn thinking off' if thought else ''})"
        return ""


def thoughts_of(message: Mapping[str, Any], dialect: Dialect) -> dict[str, object]:
    """The first field of a message that holds thoughts, and what it holds; empty when there is none."""
    return next(({name: message[name]} for name in dialect.thoughts if message.get(name)), {})


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"it holds {name}, which shows numbers that went wrong in the model")
