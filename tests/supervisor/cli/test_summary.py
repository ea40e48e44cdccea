"""What `supervise run` tells a person to try, once the server is ready."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from typing import Any, cast

from supervisor import Profile, Secret, events
from supervisor.cli.session import Summary
from supervisor.dialect import Dialect
from supervisor.engines import embedded
from supervisor.logs.sink import Sink
from supervisor.profile import Health


class Said:
    """Stands for the log: keeps what is said."""

    def __init__(self) -> None:
        self.text = ""

    def say(self, text: str) -> None:
        self.text += text


def tried(dialect: Dialect, *, warmups: int = 1, key: bool = False, **health: Any) -> list[str]:
    """The words of the command that is recommended at READY."""
    profile = Profile(
        name="x",
        command=("x", "{port}"),
        dialect=dialect,
        health=Health(**health),
        api_key=Secret("sk-tests-only-99") if key else None,
    )
    said = Said()
    summary = Summary(profile, cast("Sink", said), "MY_KEY" if key else None)
    for _ in range(warmups):
        summary(events.WarmupPassed(elapsed_s=1.0, unix_s=1.0, point="warmup", step="text", took_s=0.1))
    summary(events.ChildReady(elapsed_s=1.0, unix_s=1.0, url="http://127.0.0.1:9000", pid=7, waited_s=1.0))
    (line,) = (line for line in said.text.splitlines() if line.startswith("  try"))
    return shlex.split(line)[1:]


def test_a_chat() -> None:
    """A model server is asked for a sentence, by the name of its model, with the key's variable and not the key."""
    words = tried(Dialect(), key=True, model_id="m")
    assert words[:3] == ["curl", "-s", "http://127.0.0.1:9000/v1/chat/completions"]
    assert "Authorization: Bearer $MY_KEY" in words
    body = json.loads(words[-1])
    assert (body["model"], body["messages"][0]["role"]) == ("m", "user")


def test_the_engines_own_example() -> None:
    """A base model continues a text: a chat with it would show nothing but the end of a turn."""
    words = tried(embedded.EMBEDDED, model_id="gemma-3-270m")
    assert words[2] == "http://127.0.0.1:9000/v1/completions"
    assert json.loads(words[-1]) == {"model": "gemma-3-270m", "prompt": "The sea is", "max_tokens": 48}


def test_no_model() -> None:
    """A server that was neither warmed nor named a model, or that cannot chat, is asked for its health."""
    assert tried(Dialect(), warmups=0) == ["curl", "-s", "http://127.0.0.1:9000/health"]
    assert tried(replace(Dialect(), chat_path=None)) == ["curl", "-s", "http://127.0.0.1:9000/health"]
