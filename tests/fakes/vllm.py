"""Profiles and hooks of the fake vLLM server."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

from supervisor import Hooks, Profile, Restart, Secret, Stop, Timeouts
from supervisor.engines.help_flags import listed
from supervisor.engines.vllm import Vllm

SERVER = Path(__file__).with_name("vllm_server.py")
BINARY = (sys.executable, "-S", "-P", str(SERVER))
HELP = SERVER.parents[1] / "testdata" / "vllm" / "help.txt"
KEY = Secret("sk-made-up-for-tests")
LIMITS = Timeouts(start_s=30, stall_s=30, probe_s=5, step_s=20, resume_s=20)


@cache
def known() -> frozenset[str]:
    """The flags of the captured help."""
    return listed(HELP.read_text(encoding="utf-8"))


def vllm(faults: str = "", **settings: Any) -> Vllm:
    """Settings whose binary is the fake; faults are those of its docstring."""
    defaults: dict[str, Any] = {
        "model": "tiny",
        "binary": BINARY,
        "env": {"FAKE_VLLM": faults},
        "timeouts": LIMITS,
        "stop": Stop(grace_s=5, drain_s=2),
        "restart": Restart(policy="never"),
    }
    return Vllm(**(defaults | settings))


def supervised(faults: str = "", **settings: Any) -> tuple[Profile, Hooks]:
    """Profile and hooks of such settings."""
    server = vllm(faults, **settings)
    return server.profile(known()), server.hooks()
