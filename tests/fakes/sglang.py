"""Settings and profiles of the fake SGLang server."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from supervisor import Profile, Secret, Stop, Timeouts
from supervisor.engines.help_flags import listed
from supervisor.engines.sglang import Sglang

SERVER = Path(__file__).with_name("sglang_server.py")
HELP = SERVER.parents[1] / "testdata" / "sglang" / "help.txt"
KEY = Secret("sk-made-up-for-tests")
LIMITS = Timeouts(start_s=30, stall_s=30, probe_s=5, step_s=20, resume_s=20)
SHORT = Stop(to="leader", grace_s=0.2)  # for a server that could not end in time


@cache
def known() -> frozenset[str]:
    """The flags of the captured help."""
    return listed(HELP.read_text(encoding="utf-8"))


def sglang(**settings: Any) -> Sglang:
    """Settings whose binary is the fake."""
    defaults: dict[str, Any] = {
        "model": "/models/tiny",
        "binary": (sys.executable, "-I", "-S", str(SERVER)),
        "api_key": KEY,
        "memory_saver": True,
        "timeouts": LIMITS,
        "stop": Stop(to="leader", grace_s=10),
    }
    return Sglang(**(defaults | settings))


def server_of(*faults: str, **settings: Any) -> tuple[Sglang, Profile]:
    """Such settings and their profile, with flags that only the fake knows."""
    server = sglang(**settings)
    profile = server.profile(known())
    return server, replace(profile, command=(*profile.command, *faults))
