"""A Step that sends a request which the user wrote into a file."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hooks.http.answer import Answer
from hooks.http.ask import ask
from hooks.http.chat import model_of
from hooks.http.dialect import route
from hooks.http.images import are_asked, pictures
from supervisor.errors import ProfileError

if TYPE_CHECKING:
    from supervisor.child import Child

__all__ = ["RawJson"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RawJson:
    """Sends the request that a file holds, and demands an answer that is not empty.

    The file holds the body of a chat completion, or names the route as well:
    `{"path": "/v1/responses", "body": {...}}`. It is read when the Step is made. The answer may have the shape of any
    of OpenAI's text routes: chat, completions or responses. On a route for images it must hold the pictures
    that the body asks for (`n`, `size`), in `b64_json`. A body without `model` gets the profile's.

    Attributes:
        path: of the file.
        name, deadline_s: see `Step`; the name is the file's unless given.

    Raises:
        ProfileError: the file is missing or not such JSON; it names the file, and the line and column.
    """

    path: str | os.PathLike[str]
    name: str = ""
    deadline_s: float | None = None
    _path: str | None = field(init=False, repr=False, compare=False)
    _body: dict[str, Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        request = self._read()
        bare = not request.keys() & {"path", "body"}
        path, body = (None, request) if bare else (request.get("path"), request.get("body"))
        if not bare and (unknown := sorted(request.keys() - {"path", "body"})):
            self._refuse(f"only path and body beside each other, not {', '.join(unknown)}")
        if path is not None and not (isinstance(path, str) and path.startswith("/") and path.isprintable()):
            self._refuse(f"a path that begins with /, not {path!r}")
        if not isinstance(body, dict):
            self._refuse("a body that is a JSON object")
        if path is None and not (isinstance(body.get("messages"), list) and body["messages"]):
            self._refuse('a body with messages; another route than chat is asked as {"path": ..., "body": ...}')
        if body.get("stream"):
            self._refuse("a body without stream, because the answer is verified whole")
        object.__setattr__(self, "_path", path)
        object.__setattr__(self, "_body", body)
        object.__setattr__(self, "name", self.name or Path(self.path).name)

    @property
    def is_chat(self) -> bool:
        """Whether the file holds the body of a chat completion and no route."""
        return self._path is None

    def request(self, child: Child) -> tuple[str, dict[str, Any]]:
        """The route and the body, as they are sent to this server."""
        return self._path or route(child, "chat_path"), {"model": model_of(child), **self._body}

    async def __call__(self, child: Child) -> None:
        """Ask once and verify."""
        path, body = self.request(child)
        answer = await ask(child, path, body, timeout_s=self.deadline_s)
        if are_asked(child, path):
            pictures(answer, body)
        else:
            _verify(answer)

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
    """Something was written, in any of the three shapes of text."""
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
    if not answer.message().get("tool_calls"):
        answer.written()


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")
