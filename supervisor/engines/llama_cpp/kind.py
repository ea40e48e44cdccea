"""What is known of every llama-server."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

from supervisor.engines.base import EngineKind
from supervisor.engines.llama_cpp.dialect import COUNTERS, LLAMA_CPP, READY, accept, parse_line
from supervisor.engines.llama_cpp.router_dialect import dialect_of, is_router
from supervisor.engines.llama_cpp.server import TAIL_LINES, rarer
from supervisor.profile import accept_2xx

if TYPE_CHECKING:
    from collections.abc import Sequence

    from supervisor.profile import Profile

__all__ = ["KIND"]


def runs(argv: Sequence[str]) -> bool:
    """Tell whether the program is llama-server, under any path, also behind wrappers such as `env` or `nice`."""
    return any(Path(argument).name == "llama-server" for argument in argv)


def adopt(profile: Profile) -> Profile:
    """Return the profile with llama-server's health body, log lines and counters; or as a router, without a model."""
    health, liveness = profile.health, profile.liveness
    if health.path == "/health" and health.accept is accept_2xx:
        health = replace(health, accept=accept)
    router = is_router(profile.command, profile.env)
    if liveness.counters_path is None and "--metrics" in profile.command and not router:
        liveness = replace(liveness, counters_path="/metrics", counters_pattern=COUNTERS)
    liveness = rarer(liveness, _idle_s(profile.command))
    return replace(
        profile,
        health=replace(health, ready_pattern=health.ready_pattern or READY),
        liveness=liveness,
        logs=replace(profile.logs, parse=parse_line, tail_lines=max(profile.logs.tail_lines, TAIL_LINES)),
        api_key_env=profile.api_key_env or "LLAMA_API_KEY",
        dialect=dialect_of([health.model_id] if health.model_id else []) if router else LLAMA_CPP,
    )


def _idle_s(argv: Sequence[str]) -> int | None:
    """The seconds after which the server sleeps, by its command; None: it never does, or llama-server will object."""
    value = dict(pairwise(argv)).get("--sleep-idle-seconds", "")
    return int(value) if value.isdecimal() else None


KIND: Final = EngineKind(dialect=LLAMA_CPP, runs=runs, adopt=adopt)
