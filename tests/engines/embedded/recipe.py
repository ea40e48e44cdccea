"""llama.cpp inside a Python process, with Gemma 3 270M: from our own environment, without an install."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Final

from engines.environment import Environment
from engines.idle import IDLE_S, idle
from engines.recipe import CHAT, Recipe
from supervisor import Secret
from supervisor.dialect import Request
from supervisor.engines.base import Engine
from supervisor.engines.embedded import Embedded


def _engine(_: Environment, __: Path, key: Secret) -> Engine:
    return Embedded(settings={"api_key": key, "slots": 1, "sleep_idle_s": IDLE_S})


RECIPE: Final = Recipe(
    name="embedded",
    version=lambda _: f"xllamacpp {version('xllamacpp')}",
    engine=_engine,
    requests=(CHAT, Request(path="/v1/completions", body={"prompt": "The sea is", "max_tokens": 12})),
    sleeps=(idle(),),
    start_s=60,
)
