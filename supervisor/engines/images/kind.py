"""What is known of every image server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from supervisor.engines.base import EngineKind
from supervisor.engines.images.dialect import COUNTERS, IMAGES, READY, accept, parse_line
from supervisor.engines.images.settings import GRACE_S, KEY_VARIABLE, PROGRAM, TAIL_LINES
from supervisor.profile import Stop, accept_2xx

if TYPE_CHECKING:
    from collections.abc import Sequence

    from supervisor.profile import Profile

__all__ = ["KIND"]

_MODULE: Final = f"{__package__}.server"


def runs(argv: Sequence[str]) -> bool:
    """Tell whether the command runs our program, by its path wherever it was installed, or as a module."""
    end = Path(PROGRAM).parts[-3:]  # engines/images/server
    paths = (Path(argument) for argument in argv)
    return _MODULE in argv or any(
        (path.parts[:-1] if path.name == "__main__.py" else path.parts)[-3:] == end for path in paths
    )


def adopt(profile: Profile) -> Profile:
    """Return the profile with the image server's health body, log lines, counters and grace."""
    health, liveness = profile.health, profile.liveness
    if health.path == "/health" and health.accept is accept_2xx:
        health = replace(health, accept=accept)
    if liveness.counters_path is None:
        liveness = replace(liveness, counters_path="/metrics", counters_pattern=COUNTERS)
    return replace(
        profile,
        health=replace(health, ready_pattern=health.ready_pattern or READY),
        liveness=liveness,
        stop=replace(profile.stop, grace_s=GRACE_S) if profile.stop == Stop() else profile.stop,
        logs=replace(profile.logs, parse=parse_line, tail_lines=max(profile.logs.tail_lines, TAIL_LINES)),
        api_key_env=profile.api_key_env or KEY_VARIABLE,
        dialect=IMAGES,
    )


KIND: Final = EngineKind(dialect=IMAGES, runs=runs, adopt=adopt)
"""`exec` starts it as `-- ENV/bin/python .../supervisor/engines/images/server --model DIR --port PORT`."""
