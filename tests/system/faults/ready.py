"""Faults while it is READY."""

from __future__ import annotations

from supervisor import Hooks, Restart, Timeouts, step
from system.faults.fault import Fault
from system.faults.hook_sets import pinged
from system.faults.settings import BLIND, FRONTED, PINGS, QUICK, SHORT, VITAL, WATCH
from system.faults.steps import Descriptors, look_at_members

# fmt: off
READY: tuple[Fault, ...] = (
    Fault(
        name="ready-killed", fault="SIGKILL of the server", moment="ready", outcome="failed", error="ChildCrashed",
        status=1, says="was killed by SIGKILL unasked", stage="exec", act="kill",
    ),
    Fault(
        name="ready-killed-restart", fault="SIGKILL of the server, a restart is allowed", moment="ready",
        outcome="recovered", act="kill", profile={"restart": QUICK}, lives=2,
    ),
    Fault(
        name="ready-killed-restart-exec", fault="the same, under `--restart on-failure`", moment="ready",
        outcome="recovered", stage="exec", act="kill", options=("--restart", "on-failure"), lives=2,
    ),
    Fault(
        name="ready-killed-daemon", fault="SIGKILL of the server of a Daemon", moment="ready", outcome="failed",
        error="ChildCrashed", status=1, says="SIGKILL", stage="daemon", act="kill",
    ),
    Fault(
        name="ready-killed-host", fault="the same, with `host_exit_code=23`", moment="ready", outcome="failed",
        error="ChildCrashed", status=23, stage="host", act="kill", profile={"restart": Restart(host_exit_code=23)},
    ),
    Fault(
        name="ready-term", fault="somebody else's SIGTERM to the server", moment="ready", outcome="failed",
        error="ChildCrashed", status=1, says="exited with code 0 unasked", act="term",
    ),
    Fault(
        name="ready-worker-killed", fault="SIGKILL of a worker, whose front would end with code 0 a minute later",
        moment="ready", outcome="failed", error="WorkerDied", status=1, says="--rank 0", act="kill vital",
        command=FRONTED, profile=VITAL,
    ),
    Fault(
        name="ready-worker-killed-restart", fault="the same, a restart is allowed", moment="ready",
        outcome="recovered", act="kill vital", command=FRONTED, profile={**VITAL, "restart": QUICK}, lives=2,
    ),
    Fault(
        name="ready-worker-killed-unwatched", fault="SIGKILL of an unwatched worker; its front ends with code 0",
        moment="ready", outcome="failed", error="ChildCrashed", status=1, says="exited with code 0 unasked",
        act="kill worker", command=FRONTED, flags=("--linger-s", "0"),
    ),
    Fault(
        name="ready-exit", fault="exit code 3 after a request", moment="ready", outcome="failed", error="ChildCrashed",
        status=1, says="exited with code 3", act="ask", flags=("--exit-after-requests", "1", "--exit-code", "3"),
    ),
    Fault(
        name="ready-sigsegv", fault="SIGSEGV in a request", moment="ready", outcome="failed", error="ChildCrashed",
        status=1, says="SIGSEGV", act="ask", flags=("--signal-after-requests", "1", "--signal", "SIGSEGV"),
    ),
    Fault(
        name="ready-budget", fault="every child dies, one restart is allowed", moment="ready", outcome="failed",
        error="ChildCrashed", status=1, says="exited with code 1", flags=("--die-after-s", "0.2"),
        profile={"restart": Restart(policy="on-failure", max_restarts=1, backoff_s=0.01)}, lives=2,
    ),
    Fault(
        name="ready-hang", fault="nothing is answered any more", moment="ready", outcome="failed",
        error="ChildUnresponsive", status=1, says="no answer within", flags=("--hang-after-ready", "0.2"),
        profile={"timeouts": BLIND, "liveness": WATCH},
    ),
    Fault(
        name="ready-hang-restart", fault="the same, a restart is allowed", moment="ready", outcome="recovered",
        act="freeze", profile={"timeouts": BLIND, "liveness": WATCH, "restart": QUICK, "stop": SHORT}, lives=2,
    ),
    Fault(
        name="ready-hang-completions", fault="completions hang, health is green", moment="ready", outcome="failed",
        error="ChildUnresponsive", status=1, says="ping", flags=("--hang-completions-after", "1"),
        profile={"liveness": PINGS}, hooks=pinged,
    ),
    Fault(
        name="ready-nonsense", fault="completions are errors, health is green", moment="ready", outcome="failed",
        error="ChildUnresponsive", status=1, says="ping", flags=("--answer", "error", "--answer-after", "1"),
        profile={"liveness": PINGS}, hooks=pinged,
    ),
    Fault(
        name="ready-unhealthy", fault="health says 500", moment="ready", outcome="failed", error="ChildUnresponsive",
        status=1, says="HTTP 500", flags=("--health-fails-after", "0.2"), profile={"liveness": WATCH},
    ),
    Fault(
        name="ready-frozen", fault="SIGSTOP of the server", moment="ready", outcome="failed",
        error="ChildUnresponsive", status=1, says="no answer within", act="freeze",
        profile={"timeouts": BLIND, "liveness": WATCH}, escalated=False,
    ),
    Fault(
        name="ready-blink", fault="SIGSTOP of the server, then SIGCONT", moment="ready", outcome="recovered",
        act="blink", pulse=True,
    ),
    Fault(
        name="ready-slow", fault="answers are slow", moment="ready", outcome="recovered",
        flags=("--slow-first-byte", "0.15"), pulse=True,
    ),
    Fault(
        name="ready-flood", fault="a flood of log lines", moment="ready", outcome="recovered",
        flags=("--flood-lines-per-s", "0", "--flood-bytes-total", "4000000"), proof="FLOOD DONE", pulse=True,
    ),
    Fault(
        name="ready-reader-gone", fault="the reader of the log goes away", moment="ready", outcome="recovered",
        stage="exec", act="close log", flags=("--flood-lines-per-s", "1000"),
    ),
    Fault(
        name="ready-log-unread", fault="nobody reads the log, the server floods it", moment="ready",
        outcome="recovered", stage="exec", act="ignore log", flags=("--flood-lines-per-s", "20000"),
    ),
    Fault(
        name="ready-closes-output", fault="the server closes stdout and stderr, and dies later", moment="ready",
        outcome="failed", error="ChildCrashed", status=1, says="exited with code 1",
        flags=("--close-stdio", "--die-after-s", "0.3"),
    ),
    Fault(
        name="ready-guardian-killed", fault="SIGKILL of the guardian", moment="ready", outcome="recovered",
        act="kill guardian", pulse=True,
    ),
    Fault(
        name="ready-supervisor-killed", fault="SIGKILL of the supervisor", moment="ready", outcome="stopped",
        status=137, stage="exec", act="kill supervisor", flags=("--ignore-sigterm",),
    ),
    Fault(
        name="ready-supervisor-killed-grandchild", fault="the same, with a grandchild", moment="ready",
        outcome="stopped", status=137, stage="exec", act="kill supervisor", flags=("--grandchild",),
    ),
    Fault(
        name="ready-host-killed", fault="SIGKILL of the host of a Daemon", moment="ready", outcome="stopped",
        status=137, stage="host", act="kill supervisor", flags=("--ignore-sigterm",),
    ),
    Fault(
        name="ready-clock", fault="the clock jumps: SIGSTOP of the supervisor, longer than its limits, then SIGCONT",
        moment="ready", outcome="recovered", stage="run", act="suspend supervisor", pulse=True,
        profile={"timeouts": Timeouts(start_s=20, probe_s=0.5, step_s=0.5)},
    ),
    Fault(
        name="ready-descriptors", fault="the supervisor is out of descriptors", moment="ready", outcome="recovered",
        stage="run", hooks=lambda _: Hooks(warmup=(step("look", look_at_members), Descriptors(0))),
        profile={"liveness": WATCH},
        proof="the watchdog is blind: out of resources here: Too many open files", escalated=False,
    ),
    Fault(
        name="ready-stop", fault="a stop", moment="ready", outcome="stopped", act="stop",
    ),
    Fault(
        name="ready-daemon-stop", fault="`Daemon.stop`", moment="ready", outcome="stopped", stage="daemon", act="stop",
    ),
    Fault(
        name="ready-pause-stop", fault="a stop, while a restart is awaited", moment="ready", outcome="stopped",
        act="kill and stop", profile={"restart": Restart(policy="on-failure", backoff_s=60)},
    ),
)
# fmt: on
