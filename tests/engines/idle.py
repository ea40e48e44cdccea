"""The sleep of an engine that puts itself to sleep for want of requests, as a way to sleep at the seal."""

from __future__ import annotations

import anyio

from engines.recipe import Sleep
from hooks.http.dialect import read
from hooks.warmup import Text
from supervisor import Child, Hooks
from supervisor.engines.base import Engine
from supervisor.steps import step

__all__ = ["IDLE_S", "idle"]

IDLE_S = 4
"""Longer than most pauses between two checks, so that it falls asleep where it is meant to."""


async def _fall_asleep(child: Child) -> None:
    """Wait until the engine has unloaded its model; asking whether it has wakes nobody."""
    reading = child.profile.dialect.asleep
    assert reading
    while await read(child, reading) is not True:
        await anyio.sleep(0.1)


def _hooks(_: Engine) -> Hooks:
    return Hooks(sleep=(step("fall asleep", _fall_asleep, deadline_s=60),), wake=(Text(name="wake", deadline_s=60),))


def idle() -> Sleep:
    """Nothing puts such an engine to sleep but the lack of requests; and a request wakes it."""
    return Sleep(name="idle", hooks=_hooks, healthy=200)
