"""What is known of every server of SGLang."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

from supervisor.engines.base import EngineKind
from supervisor.engines.sglang.dialect import COUNTERS, QUICK_CRASH, QUIET_HEALTH, READY, SGLANG, VITAL, parse_line
from supervisor.engines.sglang.server import STOP, TAIL_ERRORS, TAIL_LINES
from supervisor.profile import Stop

if TYPE_CHECKING:
    from collections.abc import Sequence

    from supervisor.profile import Profile

__all__ = ["KIND"]

_MODULE: Final = "sglang.launch_server"


def runs(argv: Sequence[str]) -> bool:
    """Tell whether it is `sglang serve` or `python -m sglang.launch_server`, also behind wrappers."""
    pairs = list(pairwise(argv))
    return ("-m", _MODULE) in pairs or any(Path(first).name == "sglang" and then == "serve" for first, then in pairs)


def adopt(profile: Profile) -> Profile:
    """Return the profile with SGLang's processes, log lines, counters, stop, and a health that computes nothing."""
    liveness, logs = profile.liveness, profile.logs
    if liveness.counters_path is None and "--enable-metrics" in profile.command:
        liveness = replace(liveness, counters_path="/metrics", counters_pattern=COUNTERS)
    return replace(
        profile,
        env={**QUIET_HEALTH, **QUICK_CRASH, **profile.env},
        health=replace(profile.health, ready_pattern=profile.health.ready_pattern or READY),
        liveness=liveness,
        logs=replace(
            logs,
            parse=parse_line,
            tail_lines=max(logs.tail_lines, TAIL_LINES),
            tail_errors=max(logs.tail_errors, TAIL_ERRORS),
        ),
        stop=STOP if profile.stop == Stop() else profile.stop,
        vital=profile.vital or VITAL,
        dialect=SGLANG,
    )


KIND: Final = EngineKind(dialect=SGLANG, runs=runs, adopt=adopt)
"""SGLang's server, however it was started."""
