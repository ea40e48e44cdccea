"""llama.cpp inside a Python process, with Gemma 3 270M: from our own environment, without an install."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Final

import anyio

from engines.environment import Environment
from engines.recipe import CHAT, Recipe, Sleep
from hooks.http.dialect import read
from hooks.warmup import Ping
from supervisor import Child, Hooks, Secret
from supervisor.dialect import Request
from supervisor.engines.base import Engine
from supervisor.engines.embedded import Embedded
from supervisor.steps import step

# Longer than the pauses between two checks, so that it falls asleep where it is meant to.
_IDLE_S: Final = 4


def _engine(_: Environment, __: Path, key: Secret) -> Engine:
    return Embedded(settings={"api_key": key, "slots": 1, "sleep_idle_s": _IDLE_S})


async def _fall_asleep(child: Child) -> None:
    """Wait until the engine has unloaded its model; asking whether it has wakes nobody."""
    reading = child.profile.dialect.asleep
    assert reading
    while await read(child, reading) is not True:
        await anyio.sleep(0.1)


def _idle(_: Engine) -> Hooks:
    """Nothing puts this engine to sleep but the lack of requests; and a request wakes it."""
    return Hooks(sleep=(step("fall asleep", _fall_asleep, deadline_s=30),), wake=(Ping(name="wake", deadline_s=60),))


RECIPE: Final = Recipe(
    name="embedded",
    version=lambda _: f"xllamacpp {version('xllamacpp')}",
    engine=_engine,
    requests=(CHAT, Request(path="/v1/completions", body={"prompt": "The sea is", "max_tokens": 12})),
    sleeps=(Sleep(name="idle", hooks=_idle, healthy=200),),
    start_s=60,
)
