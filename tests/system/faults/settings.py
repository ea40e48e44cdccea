"""Fields of profiles that several rows share: short limits, quick restarts."""

from __future__ import annotations

from supervisor import Liveness, Restart, Secret, Stop, Timeouts
from support import TESTS

KEY = Secret("sk-made-up-for-tests")
QUICK = Restart(policy="on-failure", backoff_s=0.01, jitter=0.0)
HEAL = Restart(policy="on-resume", backoff_s=0.01, jitter=0.0)
SHORT = Stop(grace_s=0.2, drain_s=0.2)
LATE = Timeouts(start_s=0.8, probe_s=0.2)
STALL = Timeouts(start_s=60, stall_s=0.8, probe_s=0.2)
WATCH = Liveness(period_s=0.05, misses=3)
BLIND = Timeouts(start_s=20, probe_s=0.1, resume_s=0.5)  # a server that does not answer is soon given up
PINGS = Liveness(period_s=0.05, misses=2, inference_every_s=0.05)
CLEAN = {"inherit_env": ("PATH", "LANG")}  # the contract minds secrets in the environment of whoever runs the tests
# A front that outlives its worker, and ends with code 0 a minute later.
FRONTED = (
    *("{python}", "-I", "-S", str(TESTS / "fakes" / "fronted_server.py")),
    *("--port", "{port}", "--worker-file", "{tmp}/worker"),
)
VITAL = {"vital": (r"--rank \d+",)}
