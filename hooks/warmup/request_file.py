"""A warmup request that the user wrote, in a file."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

from hooks.http.answer import Answer, ask
from supervisor.errors import ProfileError

if TYPE_CHECKING:
    from supervisor.child import Child

__all__ = ["CHAT", "RawJson"]

CHAT: Final = "/v1/chat/completions"


@dataclass(frozen=True, slots=True, kw_only=True)
class RawJson:
    """Sends what a file holds, and demands an answer that is not empty.

    The file holds the body of a chat completion, or names the route as well:
    `{"path": "/v1/responses", "body": {...}}`. It is read when the Step is made. The answer may have the shape of
    chat, completions or responses. A body without `model` gets the profile's.

    Attributes:
        path: of the file.
        name, deadline_s: see `Step`; the name is the file's unless given.

    Raises:
        ProfileError: the file is missing or not such JSON; it names the file, and the line and column.
    """

    path: str | os.PathLike[str]
    name: str = ""
    deadline_s: float | None = None
    _route: str = field(init=False, repr=False, compare=False)
    _body: dict[str, Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        request = self._read()
        if "body" not in request and "path" not in request:
            request = {"path": CHAT, "body": request}
        route, body = request.get("path", CHAT), request.get("body")
        if unknown := sorted(request.keys() - {"path", "body"}):
            self._refuse(f"only path and body beside each other, not {', '.join(unknown)}")
        if not isinstance(route, str) or not route.startswith("/") or not route.isprintable():
            self._refuse(f"a path that begins with /, not {route!r}")
        if not isinstance(body, dict):
            self._refuse("a body that is a JSON object")
        if route == CHAT and not (isinstance(body.get("messages"), list) and body["messages"]):
            self._refuse(f'a body with messages; another route is asked as {{"path": ..., "body": ...}}, not {CHAT}')
        if body.get("stream"):
            self._refuse("a body without stream, because the answer is verified whole")
        object.__setattr__(self, "_route", route)
        object.__setattr__(self, "_body", body)
        object.__setattr__(self, "name", self.name or Path(self.path).name)

    @property
    def route(self) -> str:
        """The path that the file's request goes to."""
        return self._route

    @property
    def body(self) -> dict[str, Any]:
        """The file's request."""
        return self._body

    async def __call__(self, child: Child) -> None:
        """Ask once and verify."""
        body = {"model": child.profile.health.model_id or "default", **self._body}
        _verify(await ask(child, self._route, body, timeout_s=self.deadline_s))

    def _read(self) -> dict[str, Any]:
        """The file's JSON object, which can be sent as it is."""
        try:
            text = Path(self.path).read_text(encoding="utf-8-sig")
            request = json.loads(text, parse_constant=_no_constant)
            json.dumps(request, ensure_ascii=False).encode()  # a lone surrogate reads well and cannot be sent
        except OSError as error:
            self._refuse(f"a file that can be read ({error.strerror})", error)
        except json.JSONDecodeError as error:
            self._refuse(f"JSON: line {error.lineno}, column {error.colno}: {error.msg}", error)
        except (ValueError, RecursionError) as error:
            self._refuse(f"JSON in UTF-8: {error}", error)
        if not isinstance(request, dict):
            self._refuse("a JSON object")
        return request

    def _refuse(self, wanted: str, cause: Exception | None = None) -> NoReturn:
        wanted = wanted if isinstance(cause, OSError) else f"a file that holds {wanted}"
        raise ProfileError(field="warmup", value=os.fspath(self.path), allowed=wanted) from cause


def _verify(answer: Answer) -> None:
    """Something was written, in any of the three shapes."""
    data = answer.data()
    if "output" in data:
        parts: dict[str, object] = {}
        items = data["output"] if isinstance(data["output"], list) else []
        for i, item in enumerate(item for item in items if isinstance(item, dict)):
            if item.get("type") == "function_call" and item.get("name"):
                return
            parts[f"output[{i}]"] = item.get("content") or item.get("summary")
        answer.text(parts or {"output": None})
        return
    choice = answer.choice()
    if "text" in choice:
        answer.text({"text": choice["text"]})
        return
    message = answer.message()
    if message.get("tool_calls"):
        return
    thoughts = message.get("reasoning_content") or message.get("reasoning")
    answer.text({"content": message.get("content"), "reasoning_content": thoughts})


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")
