"""What is known of every server of vLLM."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

from supervisor.engines.base import EngineKind
from supervisor.engines.vllm.closed_routes import ClosedRoutes
from supervisor.engines.vllm.dialect import COUNTERS, READY, VITAL, VLLM, parse_line
from supervisor.engines.vllm.server import GRACE_S, TAIL_ERRORS, TAIL_LINES
from supervisor.profile import Stop
from supervisor.steps import Hooks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from supervisor.profile import Profile

__all__ = ["KIND"]

_MODULES: Final = ("vllm", "vllm.entrypoints.cli.main")
_SERVER_MODULE: Final = "vllm.entrypoints.openai.api_server"


def runs(argv: Sequence[str]) -> bool:
    """Tell whether it is `vllm serve` or `python -m vllm.entrypoints.openai.api_server`, also behind wrappers."""
    pairs = set(pairwise(argv))
    return ("-m", _SERVER_MODULE) in pairs or any(
        after == "serve" and (Path(word).name == "vllm" or word in _MODULES) for word, after in pairs
    )


def served(argv: Sequence[str]) -> str | None:
    """Return the name that clients must use, as the command tells; vLLM answers 404 to any other (seen in 0.32.0)."""
    for flag in ("--served-model-name", "--model"):
        for word, after in pairwise((*argv, "")):
            if word == flag and after and not after.startswith("-"):
                return after
            if word.startswith(f"{flag}="):
                return word.partition("=")[2] or None
    return next((after for word, after in pairwise(argv) if word == "serve" and not after.startswith("-")), None)


def _lists_models(profile: Profile) -> bool:
    """Tell whether the list of models will answer: not, where the server has a key that the profile does not know."""
    environment = {**os.environ, **profile.env}
    keyed = "VLLM_API_KEY" in environment or any(word.startswith("--api-key") for word in profile.command)
    return profile.api_key is not None or not keyed


def adopt(profile: Profile) -> Profile:
    """Return the profile with vLLM's model name, processes, log lines, counters and grace."""
    liveness, logs = profile.liveness, profile.logs
    if liveness.counters_path is None and "--disable-log-stats" not in profile.command:
        liveness = replace(liveness, counters_path="/metrics", counters_pattern=COUNTERS)
    return replace(
        profile,
        health=replace(
            profile.health,
            model_id=profile.health.model_id or (served(profile.command) if _lists_models(profile) else None),
            ready_pattern=profile.health.ready_pattern or READY,
        ),
        liveness=liveness,
        logs=replace(
            logs,
            parse=parse_line,
            tail_lines=max(logs.tail_lines, TAIL_LINES),
            tail_errors=max(logs.tail_errors, TAIL_ERRORS),
        ),
        stop=Stop(grace_s=GRACE_S) if profile.stop == Stop() else profile.stop,
        vital=profile.vital or VITAL,
        api_key_env=profile.api_key_env or "VLLM_API_KEY",
        dialect=VLLM,
    )


def hooks(_: Profile) -> Hooks:
    """Return the Step that refuses a server whose open routes nobody closed."""
    return Hooks(warmup=(ClosedRoutes(),))


KIND: Final = EngineKind(dialect=VLLM, runs=runs, adopt=adopt, hooks=hooks)
"""`vllm serve`, however it was started."""
