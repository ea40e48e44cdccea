"""Faults while the model loads."""

from __future__ import annotations

from supervisor import Health, Timeouts
from system.faults.fault import Fault
from system.faults.prepare import some_weights
from system.faults.settings import LATE, QUICK, STALL

# fmt: off
LOADING: tuple[Fault, ...] = (
    Fault(
        name="load-exit-1", fault="exit code 1", moment="loading", outcome="refused", error="DiedBeforeReady",
        status=3, says="exited with code 1 during loading", stage="exec", flags=("--die-while-loading",),
    ),
    Fault(
        name="load-exit-0", fault="exit code 0", moment="loading", outcome="refused", error="DiedBeforeReady",
        status=3, says="detached into the background", flags=("--exit-while-loading", "0"),
    ),
    Fault(
        name="load-sigill", fault="SIGILL: a binary for another CPU", moment="loading", outcome="refused",
        error="DiedBeforeReady", status=3, says="SIGILL", stage="exec", flags=("--signal-while-loading", "SIGILL"),
    ),
    Fault(
        name="load-sigsegv", fault="SIGSEGV", moment="loading", outcome="refused", error="DiedBeforeReady", status=3,
        says="SIGSEGV", flags=("--signal-while-loading", "SIGSEGV"),
    ),
    Fault(
        name="load-sigkill", fault="SIGKILL, as the out-of-memory killer sends it", moment="loading",
        outcome="refused", error="DiedBeforeReady", status=3, says="out-of-memory", act="kill",
        flags=("--never-ready",),
    ),
    Fault(
        name="load-endless", fault="never ready", moment="loading", outcome="refused", error="ReadinessTimeout",
        status=3, says="Loading model", stage="exec", flags=("--never-ready",), options=("--start-timeout-s", "0.8"),
    ),
    Fault(
        name="load-hang", fault="accepts connections and answers nothing", moment="loading", outcome="refused",
        error="ReadinessTimeout", status=3, says="no answer within", flags=("--hang",), profile={"timeouts": LATE},
    ),
    Fault(
        name="load-stall", fault="the load stops reading", moment="loading", outcome="refused", error="LoadStalled",
        status=3, says="the load stalled", prepare=some_weights, profile={"timeouts": STALL},
        flags=("--model", "{tmp}/weights", "--read-model", "--load-s", "0.2", "--stall-at", "0.5"),
    ),
    Fault(
        name="load-frozen", fault="SIGSTOP of the server", moment="loading", outcome="refused", error="LoadStalled",
        status=3, says="the load stalled", act="freeze", flags=("--load-s", "30"),
        profile={"timeouts": STALL}, escalated=False,
    ),
    Fault(
        name="load-unread-model", fault="the server cannot read its model", moment="loading", outcome="refused",
        error="DiedBeforeReady", status=3, says="No such file", flags=("--model", "{tmp}/gone", "--read-model"),
    ),
    Fault(
        name="load-bind-fails", fault="the bind fails on a port of our choice", moment="loading", outcome="refused",
        error="DiedBeforeReady", status=3, says="bind", stage="exec", flags=("--bind-fails",),
        options=("--port", "{free}"),
    ),
    Fault(
        name="load-wrong-port", fault="the server listens on another port", moment="loading", outcome="refused",
        error="ReadinessTimeout", status=3, says="listens on port", flags=("--wrong-port",),
        profile={"timeouts": Timeouts(start_s=1.8)},
    ),
    Fault(
        name="load-wrong-path", fault="the server has no such health path", moment="loading", outcome="refused",
        error="ReadinessTimeout", status=3, says="--health PATH", stage="exec",
        options=("--health", "/nope", "--start-timeout-s", "0.8"),
    ),
    Fault(
        name="load-port-lost", fault="another server takes the port meanwhile", moment="loading", outcome="refused",
        error="PortTaken", status=3, says="is taken by pid", act="squat", stage="exec",
        flags=("--wrong-port", "--load-s", "0.1"), options=("--port", "{free}"),
    ),
    Fault(
        name="load-wrong-model", fault="another model than asked for", moment="loading", outcome="refused",
        error="WrongModel", status=3, says="does not serve 'wanted'", stage="exec",
        flags=("--serve-model-id", "other"), options=("--model-id", "wanted"),
    ),
    Fault(
        name="load-router", fault="green without any model (a router)", moment="loading", outcome="refused",
        error="WrongModel", status=3, says="it lists no model", flags=("--router",),
        profile={"health": Health(model_id="wanted")},
    ),
    Fault(
        name="load-blink", fault="SIGSTOP of the server, then SIGCONT", moment="loading", outcome="recovered",
        act="blink", flags=("--load-s", "0.3"),
    ),
    Fault(
        name="load-flood", fault="a flood of log lines", moment="loading", outcome="recovered",
        flags=("--load-s", "0.3", "--flood-lines-per-s", "0", "--flood-bytes-total", "4000000"), proof="FLOOD DONE",
    ),
    Fault(
        name="load-endless-line", fault="8 MiB without a line break", moment="loading", outcome="recovered",
        flags=("--load-s", "0.3", "--no-newline-mb", "8"), proof="NO NEWLINE DONE",
    ),
    Fault(
        name="load-garbage", fault="NULs, broken UTF-8 and escape sequences in the log", moment="loading",
        outcome="recovered", flags=("--load-s", "0.3", "--garbage"), proof="GARBAGE DONE",
    ),
    Fault(
        name="load-closes-output", fault="the server closes stdout and stderr", moment="loading", outcome="recovered",
        flags=("--load-s", "0.1", "--close-stdio"), pulse=True,
    ),
    Fault(
        name="load-dies-once", fault="the first child dies, a restart is allowed", moment="loading",
        outcome="recovered", act="kill", flags=("--load-s", "0.2"), profile={"restart": QUICK}, lives=2,
    ),
    Fault(
        name="load-crash-loop", fault="every child dies, restarts are allowed", moment="loading", outcome="refused",
        error="DiedBeforeReady", status=3, flags=("--die-while-loading",), profile={"restart": QUICK}, lives=3,
    ),
    Fault(
        name="load-clock", fault="the clock jumps over the stall limit: SIGSTOP of the supervisor, then SIGCONT",
        moment="loading", outcome="recovered", stage="run", act="suspend supervisor", flags=("--load-s", "1.5"),
        profile={"timeouts": Timeouts(start_s=30, stall_s=0.8)},
    ),
    Fault(
        name="load-suspended", fault="SIGSTOP of the supervisor, longer than the start timeout, then SIGCONT",
        moment="loading", outcome="recovered", stage="run", act="suspend supervisor", flags=("--load-s", "0.3"),
        profile={"timeouts": Timeouts(start_s=1.0)},
    ),
    Fault(
        name="load-host-suspended", fault="the whole host is suspended, longer than start timeout and stall limit",
        moment="loading", outcome="recovered", stage="run", act="suspend all", flags=("--load-s", "0.3"),
        profile={"timeouts": Timeouts(start_s=1.0, stall_s=0.8)},
    ),
    Fault(
        name="load-stop", fault="SIGTERM to the supervisor", moment="loading", outcome="stopped", stage="exec",
        act="stop", flags=("--never-ready",),
    ),
    Fault(
        name="load-cancel", fault="a stop", moment="loading", outcome="stopped", act="stop", flags=("--hang",),
    ),
    Fault(
        name="load-daemon-stop", fault="`Daemon.stop` from another thread", moment="loading", outcome="stopped",
        stage="daemon", act="stop", flags=("--never-ready",),
    ),
    Fault(
        name="load-supervisor-killed", fault="SIGKILL of the supervisor", moment="loading", outcome="stopped",
        status=137, stage="exec", act="kill supervisor", flags=("--never-ready", "--ignore-sigterm"),
    ),
)
# fmt: on
