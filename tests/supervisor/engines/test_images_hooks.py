"""The hooks on the image server, none of which knows it: warmup, auth, golden, smoke, the watchdog's inference."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from hooks.auth import AuthCheck, AuthError
from hooks.golden import Golden, GoldenMismatch
from hooks.http.answer import BadAnswer
from hooks.http.dialect import Unsupported
from hooks.http.endpoint import Endpoint
from hooks.smoke import Options, smoke
from hooks.warmup import Draw, Ping, RawJson, Repeat, Text, liveness_after, parse
from supervisor.engines.catalogue import dialects
from supervisor.errors import ProfileError
from supervisor.redact import Secret
from tools.image_server import KEY, Server, pipeline, running

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(pipeline(tmp_path_factory.mktemp("model"), by_prompt={"fail": "fail"})) as it:
        yield it


async def test_it_is_warmed_with_pictures(server: Server, tmp_path: Path) -> None:
    """By `draw`, a request from a file, and the watchdog's ping; a chat is not for this engine."""
    images = server.count("images_generated_total")
    request = {"path": "/v1/images/generations", "body": {"prompt": "a", "size": "32x32", "n": 2}}
    (tmp_path / "draw.json").write_text(json.dumps(request))
    for step in (Draw(), Draw(size="48x16"), RawJson(path=tmp_path / "draw.json"), Ping()):
        await step(server.child)
    assert server.count("images_generated_total") == images + 5
    with pytest.raises(Unsupported, match="no route for chat"):
        await Text()(server.child)
    with pytest.raises(BadAnswer, match="HTTP 500"):
        await Draw(prompt="fail")(server.child)
    with pytest.raises(BadAnswer, match="HTTP 400"):
        await Draw(size="33x33")(server.child)


def test_the_word_draw(tmp_path: Path) -> None:
    """It makes the Step, and the ping follows it; a file for another route than chat is repeated instead."""
    assert parse("draw") == Draw()
    assert liveness_after([Draw()]) == (Ping(),)
    (tmp_path / "draw.json").write_text('{"path": "/v1/images/generations", "body": {"prompt": "a"}}')
    file = RawJson(path=tmp_path / "draw.json")
    assert liveness_after([file]) == (Repeat(request=file),)
    with pytest.raises(ProfileError, match=r"draw\.size"):
        Draw(size="large")


async def test_only_the_key_opens_it(server: Server) -> None:
    """Strangers are refused on the list of models and on the route that draws; a server without a key is found."""
    images = server.count("images_generated_total")
    await AuthCheck()(server.child)
    assert server.count("images_generated_total") == images, "nothing was drawn for a stranger"
    child = server.child
    other = replace(child, profile=replace(child.profile, api_key=Secret("another")))
    with pytest.raises(AuthError, match="refuses the profile's api_key"):
        await AuthCheck()(other)


async def test_the_golden_answer_is_a_picture(server: Server) -> None:
    """It is recorded and replayed; another seed or prompt is another picture."""
    golden = Golden(size="64x64")
    await golden.record(server.child)
    await golden.replay(server.child)
    other = Golden(size="64x64", seed=2)
    object.__setattr__(other, "_recording", golden._recording)
    with pytest.raises(GoldenMismatch, match="of 255 apart in the mean"):
        await other.replay(server.child)


async def test_a_smoke_test_recognises_it(server: Server) -> None:
    """What it is made for passes, what only chat engines have is skipped with a word."""
    endpoint = Endpoint(url=server.child.url, api_key=Secret(KEY))
    report = await smoke(endpoint, Options(slots=1), dialects=dialects())
    outcomes = {row.name: row.outcome for row in report.rows}
    assert {name for name, outcome in outcomes.items() if outcome == "ok"} == {
        "wait", "auth", "model", "draw", "metrics",
    }  # fmt: skip
    assert "failed" not in outcomes.values()
    rows = {row.name: row for row in report.rows}
    assert rows["text"].detail == "the engine (images) has no route for chat: leave this out"
    assert rows["draw"].detail.startswith("twice the same PNG of 256x256 (one seed)")
    assert rows["metrics"].numbers["images_generated_total"] == 1
