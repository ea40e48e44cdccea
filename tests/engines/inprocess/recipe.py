"""A Python server with the model in its own process: `server.py`, with the profile that anybody would write for it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Final

from engines.environment import Environment
from engines.recipe import Recipe
from fakes.tiny_gemma4 import build
from supervisor import Health, Hooks, Profile, Secret
from supervisor.dialect import Dialect
from supervisor.engines.base import Engine, PlainServer

_SERVER: Final = Path(__file__).with_name("server.py")


@dataclass(frozen=True, slots=True, kw_only=True)
class InProcess:
    """The settings of `server.py`: a plain server, up once it lists its model. Implements `Engine`."""

    model: Path
    api_key: Secret

    @property
    def dialect(self) -> Dialect:
        """What can be expected of any server."""
        return Dialect()

    def profile(self) -> Profile:
        """Build the profile."""
        command = (sys.executable, str(_SERVER), str(self.model), "{port}")
        return replace(
            PlainServer(command=command, name="in-process").profile(),
            health=Health(path="/v1/models", model_id=self.model.stem),
            api_key=self.api_key,
            api_key_env="API_KEY",
            weights=(self.model,),
        )

    def hooks(self) -> Hooks:
        """Return no Steps."""
        return Hooks()


def _model(_: Environment, folder: Path) -> None:
    build(folder / "sea.gguf")


def _engine(_: Environment, folder: Path, key: Secret) -> Engine:
    return InProcess(model=folder / "sea.gguf", api_key=key)


RECIPE: Final = Recipe(
    name="in-process",
    version=lambda _: f"xllamacpp {version('xllamacpp')}, uvicorn {version('uvicorn')}",
    engine=_engine,
    make_model=_model,
    start_s=60,
)
