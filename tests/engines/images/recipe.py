"""The image server before FLUX.2-klein: diffusers' real pipeline with small random weights, on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from engines.recipe import Recipe
from hooks.golden import Golden
from hooks.warmup import Draw
from supervisor.dialect import Request
from supervisor.engines.images import Images

if TYPE_CHECKING:
    from engines.environment import Environment
    from supervisor import Secret
    from supervisor.engines.base import Engine

HERE: Final = Path(__file__).parent
ROUTE: Final = "/v1/images/generations"


def _make_model(env: Environment, folder: Path) -> None:
    env.run(env.python, HERE / "model.py", folder)


def _engine(env: Environment, model: Path, key: Secret) -> Engine:
    return Images(
        python=env.python,
        model=model,
        served_name="tiny",
        size="64x64",
        dtype="float32",
        call={"text_encoder_out_layers": [1, 2, 3]},
        api_key=key,
    )


RECIPE: Final = Recipe(
    name="images",
    engine=_engine,
    package="diffusers",
    requirements=HERE / "requirements.txt",
    make_model=_make_model,
    sleeps="it has no way to sleep",
    requests=(
        Request(path=ROUTE, body={"prompt": "a lighthouse at dawn", "size": "64x64", "seed": 7}),
        Request(path=ROUTE, body={"prompt": "a red square", "n": 2, "size": "96x64", "seed": 1, "steps": 2}),
    ),
    golden=lambda: (Golden(size="64x64"),),
    warmup=(Draw(),),
    start_s=240,
    notice_s=10,
)
