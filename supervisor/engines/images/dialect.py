"""How the image server speaks: routes, health bodies, log lines, counters. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from supervisor.dialect import Dialect, Fields, Reading, Request, samples
from supervisor.engines.settings import accept_status_ok
from supervisor.levels import LEVELS, plain_line

if TYPE_CHECKING:
    from pathlib import Path

    from supervisor.events import Level

__all__ = ["COUNTERS", "IMAGES", "OUT_OF_MEMORY", "READY", "accept", "parse_line", "weight_files"]

READY: Final = r"^(?:INFO )?ready: serving "
COUNTERS: Final = r"(?m)^images_(?:steps|generated)_total +\S+"
"""Steps count while an image is drawn, so that a long one shows as work."""

OUT_OF_MEMORY: Final = r"(?i)OutOfMemoryError|(?:CUDA|HIP) out of memory|can't allocate memory|\(out of memory\)"
"""What the log says when weights or an image did not fit, on a GPU or in RAM (words of torch 2.13)."""

_LINE: Final = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL) (.*)", re.DOTALL)


accept = accept_status_ok
"""How `/health` is judged."""


def parse_line(line: str) -> tuple[Level, str]:
    """Read `ERROR the load failed ...`; what libraries print without a level is taken as any server's lines."""
    if match := _LINE.fullmatch(line):
        return LEVELS.get(match[1].lower(), "info"), match[2]
    return plain_line(line)


def weight_files(model: Path) -> tuple[Path, ...]:
    """Return the weights in a pipeline's folder; the path itself when it is a file, or holds none."""
    return tuple(sorted(model.rglob("*.safetensors"))) or (model,)


def repeatable(seed: int) -> Fields:
    """Return the fields of a request whose image is the same each time."""
    return {"seed": seed}


def in_flight(page: str) -> int | None:
    """Count the requests that run or wait, by the gauges of `/metrics`; None when the page has none of them."""
    values = samples(page, "images_requests_(?:running|waiting)")
    return round(sum(values.values())) if values else None


_SMALL: Final = {"prompt": "a red square", "n": 1, "size": "64x64", "steps": 1, "seed": 1}

IMAGES: Final = Dialect(
    engine="images",
    owned_by="warmboot-images",
    chat_path=None,
    completions_path=None,
    responses_path=None,
    images_path="/v1/images/generations",
    generating=(Request(path="/v1/images/generations", body=_SMALL),),
    open_paths=("/health",),
    example=Request(
        path="/v1/images/generations", body={"prompt": "a lighthouse at dawn, watercolour", "n": 1, "size": "512x512"}
    ),
    fewest_tokens={"n": 1, "steps": 1},
    repeatable=repeatable,
    requests=(Reading(path="/metrics", read=in_flight),),
    token_counters=Reading(path="/metrics", read=lambda page: samples(page, r"images_(?:steps|generated)_total")),
    loading="the pipeline is loading",
    weight_files=weight_files,
    no_mmap_hint="have the pipeline's class copy what it maps, as the server does for diffusers' own pipelines",
    out_of_memory=OUT_OF_MEMORY,
)
"""How the image server speaks; only `/health` answers without the key."""
