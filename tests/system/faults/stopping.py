"""Faults while it is stopped."""

from __future__ import annotations

from supervisor import Hooks, Stop
from system.faults.fault import Fault
from system.faults.steps import Asleep, Broken

# fmt: off
STOPPING: tuple[Fault, ...] = (
    Fault(
        name="stop-ignored", fault="the server ignores SIGTERM", moment="stopping", outcome="stopped", stage="exec",
        flags=("--ignore-sigterm",), options=("--grace-s", "0.3"), escalated=True,
    ),
    Fault(
        name="stop-slow", fault="the server takes its time, within the grace period", moment="stopping",
        outcome="stopped", flags=("--slow-sigterm", "0.4"), escalated=False,
    ),
    Fault(
        name="stop-frozen", fault="the server is stopped by SIGSTOP", moment="stopping", outcome="stopped",
        act="freeze first", escalated=False,
    ),
    Fault(
        name="stop-grandchild", fault="a grandchild ignores SIGTERM and holds the pipes", moment="stopping",
        outcome="stopped", flags=("--grandchild",), profile={"stop": Stop(grace_s=5, drain_s=0.2)},
    ),
    Fault(
        name="stop-wrapper", fault="a shell is between us and the server", moment="stopping", outcome="stopped",
        command=("/bin/sh", "-c", "{python} {fake} --port {port} & wait", "--port", "{port}"), escalated=False,
    ),
    Fault(
        name="stop-other-session", fault="the server has left for a session of its own", moment="stopping",
        outcome="stopped", command=("setsid", "-w", "{python}", "{fake}", "--port", "{port}"), escalated=False,
    ),
    Fault(
        name="stop-flood", fault="the server floods its log", moment="stopping", outcome="stopped",
        flags=("--flood-lines-per-s", "0"),
    ),
    Fault(
        name="stop-died", fault="SIGKILL of the server by somebody else", moment="stopping", outcome="stopped",
        act="kill", flags=("--slow-sigterm", "20"), escalated=False,
    ),
    Fault(
        name="stop-step-raises", fault="a `before_stop` Step raises", moment="stopping", outcome="stopped",
        hooks=lambda _: Hooks(before_stop=(Broken(),)),
    ),
    Fault(
        name="stop-step-hangs", fault="a `before_stop` Step hangs", moment="stopping", outcome="stopped",
        hooks=lambda _: Hooks(before_stop=(Asleep(0.2),)),
    ),
    Fault(
        name="stop-twice", fault="a second SIGTERM", moment="stopping", outcome="stopped", status=143, stage="exec",
        act="stop again", flags=("--ignore-sigterm",), options=("--grace-s", "600"),
    ),
    Fault(
        name="stop-supervisor-killed", fault="SIGKILL of the supervisor", moment="stopping", outcome="stopped",
        status=137, stage="exec", act="kill supervisor", flags=("--ignore-sigterm", "--grandchild"),
        options=("--grace-s", "600"),
    ),
    Fault(
        name="stop-clock", fault="the clock jumps: SIGSTOP of the supervisor, then SIGCONT", moment="stopping",
        outcome="stopped", stage="exec", act="suspend supervisor", flags=("--slow-sigterm", "0.3"),
        options=("--grace-s", "5"),
    ),
)
# fmt: on
