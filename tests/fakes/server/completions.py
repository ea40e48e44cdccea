"""What the fake server answers to a prompt, whole or streamed, good or odd as planned."""

from __future__ import annotations

import binascii
import json

from fakes.server.flags import ODD_CONTENT
from fakes.server.wire import JSON, Reply, error_body

TYPE_CHECKING = False  # importing typing would cost more time than all the rest
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Json = dict[str, Any]


def thoughts(request: Json, template: Json) -> str:
    """One word for every token of the budget, many when it is unlimited; without a budget, a single sentence."""
    budget: int = {"thinking_budget_tokens": 3, **template, **request}["thinking_budget_tokens"]
    words = ["Let", "me", "think."]
    return " ".join(words[i % 3] for i in range(96 if budget < 0 else min(budget, 100_000)))


def check_image(url: str) -> None:
    """A ValueError unless it is a data URL that holds at least the head of a PNG."""
    head, _, data = url.partition(";base64,")
    png = binascii.a2b_base64(data, strict_mode=True) if head.startswith("data:image/") else b""
    if png[:8] != b"\x89PNG\r\n\x1a\n" or png[8:16] != b"\0\0\0\x0dIHDR" or len(png) < 33:
        raise ValueError("failed to decode the image")
    if not (any(png[16:20]) and any(png[20:24])):
        raise ValueError("the image has no pixels")


def compose(request: Json) -> Json:
    """The good answer's message. A ValueError when the request holds a broken image."""
    message: Json = {"role": "assistant", "content": "OK"}
    for turn in request.get("messages", []):
        parts = turn.get("content")
        for part in parts if isinstance(parts, list) else []:
            if part.get("type") == "image_url":
                check_image(part["image_url"]["url"])
                message["content"] = "A red square."
    template = request.get("chat_template_kwargs", {})
    if template.get("enable_thinking") is True:
        message["reasoning_content"] = thoughts(request, template)
    if request.get("tools"):
        function = {"name": request["tools"][0]["function"]["name"], "arguments": "{}"}
        message.update(content=None, tool_calls=[{"id": "call_0", "type": "function", "function": function}])
    return message


def logprobs_of(message: Json, top: int, drift: float) -> Json:
    """Log-probabilities in llama.cpp's shape, one word a token; the first runner-up is always the same."""
    rows = []
    for i, word in enumerate((message["content"] or "").split()):
        token = f" {word}" if i else word
        row = {"id": 100 + i, "token": token, "bytes": list(token.encode()), "logprob": -0.01 * (i + 1) - drift}
        other = {"id": 7, "token": " the", "bytes": list(b" the"), "logprob": -5.0}
        rows.append({**row, "top_logprobs": [row, other][:top]})
    return {"content": rows}


def deltas(message: Json) -> list[Json]:
    """A message cut into the pieces in which a stream brings it."""
    pieces: list[Json] = [{"role": "assistant", "content": None}]
    if message.get("reasoning_content"):
        pieces.append({"reasoning_content": message["reasoning_content"]})
    if "tool_calls" in message:
        pieces.append({"tool_calls": [{"index": i, **call} for i, call in enumerate(message["tool_calls"])]})
    else:
        pieces.append({"content": message["content"]})
    return pieces


class Completion:
    """One answer to /v1/chat/completions or /v1/completions, in whatever form was asked or planned."""

    logprob_drift = 0.0

    def __init__(self, request: Json, chat: bool, message: Json, head: Json, odd: str) -> None:
        self.request, self.chat, self.message, self.head, self.odd = request, chat, message, head, odd
        if odd in ODD_CONTENT:
            message["content"] = ODD_CONTENT[odd]
            message.pop("tool_calls", None)
        self.finish = "tool_calls" if "tool_calls" in message else "stop"
        said = f"{message.get('reasoning_content', '')} {message['content'] or self.finish}".split()
        asked = 1 + len(json.dumps(request.get("messages") or request.get("prompt") or request.get("input"))) // 4
        counts = {"prompt_tokens": asked, "completion_tokens": len(said)}
        self.usage = {**counts, "total_tokens": asked + len(said)}

    def reply(self) -> Reply:
        if self.odd == "html":
            return Reply(200, [b"<html><body><h1>Welcome to nginx!</h1></body></html>"], "text/html")
        if self.request.get("stream") is True:
            parts = [b"data: %s\n\n" % event for event in self.events()]
            return Reply(200, parts, "text/event-stream", chunked=True, cut=self.odd == "cut")
        body = json.dumps(self.whole()).encode()
        body = body[: len(body) // 2] if self.odd == "invalid-json" else body
        return Reply(200, [body], JSON, cut=self.odd == "cut")

    def choice(self, key: str, value: Json, finish: str | None) -> Json:
        content: Json = {key: value} if self.chat else {"text": value.get("content", "")}
        if self.request.get("logprobs") and value.get("content"):
            content["logprobs"] = logprobs_of(value, self.request.get("top_logprobs", 20), self.logprob_drift)
        return {"index": 0, **content, "finish_reason": finish}

    def whole(self) -> Json:
        if self.odd == "error":
            return error_body(500, "server_error", "the planned error")
        if self.odd == "no-choices":
            return {"choices": []}
        kind = "chat.completion" if self.chat else "text_completion"
        choice = self.choice("message", self.message, self.finish)
        return {**self.head, "object": kind, "choices": [choice], "usage": self.usage}

    def events(self) -> Iterator[bytes]:
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        pieces = deltas(self.message)[0 if self.chat else 1 :]
        choices = [[self.choice("delta", piece, None)] for piece in pieces]
        choices.append([self.choice("delta", {}, self.finish)])
        chunks = [{**self.head, "object": kind, "choices": choice} for choice in choices]
        if self.request.get("stream_options", {}).get("include_usage"):
            chunks.append({**self.head, "object": kind, "choices": [], "usage": self.usage})
        if self.odd in ("error", "no-choices"):
            chunks = [self.whole()]
        for chunk in chunks:
            event = json.dumps(chunk).encode()
            yield event[: len(event) // 2] if self.odd == "invalid-json" else event
        yield b"[DONE]"


class Response(Completion):
    """One answer to /v1/responses. The fake streams none, and calls no tools there."""

    def whole(self) -> Json:
        if self.odd == "error":
            return super().whole()
        content = [{"type": "output_text", "text": self.message["content"], "annotations": []}]
        item = {"type": "message", "role": "assistant", "status": "completed", "content": content}
        used = {"input_tokens": self.usage["prompt_tokens"], "output_tokens": self.usage["completion_tokens"]}
        output = [] if self.odd == "no-choices" else [item]
        head = {**self.head, "object": "response", "status": "completed", "error": None}
        return {**head, "output": output, "usage": used}


def form_of(path: str, request: Json) -> type[Completion]:
    """The shape of the answer; a ValueError for what the fake cannot do."""
    if path != "/v1/responses":
        return Completion
    if request.get("stream") or not request["input"]:
        raise ValueError("the fake takes an input, and streams no responses")
    return Response
