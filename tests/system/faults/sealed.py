"""Faults at the seal and while SEALED."""

from __future__ import annotations

from supervisor import Hooks, Timeouts
from system.faults.fault import Fault
from system.faults.hook_sets import cannot_sleep, sleeps, warmed, with_contract
from system.faults.prepare import some_weights
from system.faults.settings import BLIND, CLEAN, FRONTED, HEAL, SHORT, VITAL
from system.faults.steps import Asleep, Broken

# fmt: off
SEALED: tuple[Fault, ...] = (
    Fault(
        name="sealed-killed", fault="SIGKILL of the server", moment="sealed", outcome="failed", error="ChildCrashed",
        status=1, says="SIGKILL", act="kill",
    ),
    Fault(
        name="sealed-killed-heal", fault="the same, a resume may replace it", moment="sealed", outcome="recovered",
        act="kill", hooks=warmed, profile={"restart": HEAL}, lives=2,
    ),
    Fault(
        name="sealed-killed-daemon", fault="the same, under a Daemon", moment="sealed", outcome="recovered",
        stage="daemon", act="kill", hooks=warmed, profile={"restart": HEAL}, lives=2,
    ),
    Fault(
        name="sealed-worker-killed", fault="SIGKILL of a worker, while its front lives on", moment="sealed",
        outcome="failed", error="WorkerDied", status=1, says="--rank 0", act="kill vital", command=FRONTED,
        profile=VITAL,
    ),
    Fault(
        name="sealed-worker-killed-heal", fault="the same, a resume may replace it", moment="sealed",
        outcome="recovered", act="kill vital", command=FRONTED, profile={**VITAL, "restart": HEAL}, lives=2,
    ),
    Fault(
        name="sealed-frozen", fault="SIGSTOP of the server", moment="sealed", outcome="failed",
        error="ChildUnresponsive", status=1, says="after the resume", act="freeze",
        profile={"timeouts": BLIND}, escalated=False,
    ),
    Fault(
        name="sealed-frozen-heal", fault="the same, a resume may replace it", moment="sealed", outcome="recovered",
        act="freeze", profile={"timeouts": BLIND, "stop": SHORT, "restart": HEAL}, lives=2,
    ),
    Fault(
        name="sealed-blink", fault="SIGSTOP of the server, then SIGCONT", moment="sealed", outcome="recovered",
        act="blink",
    ),
    Fault(
        name="sealed-step-raises", fault="a `before_seal` Step raises", moment="sealed", outcome="refused",
        error="StepFailed", says="on purpose", hooks=lambda _: Hooks(before_seal=(Broken(),)),
    ),
    Fault(
        name="sealed-step-hangs", fault="a `before_seal` Step hangs", moment="sealed", outcome="refused",
        error="StepFailed", says="no result within", hooks=lambda _: Hooks(before_seal=(Asleep(0.2),)),
    ),
    Fault(
        name="sealed-sleep-raises", fault="a `sleep` Step raises, the `wake` Steps pass", moment="sealed",
        outcome="refused", error="StepFailed", says="sleep", hooks=cannot_sleep,
    ),
    Fault(
        name="sealed-asleep-killed-heal", fault="SIGKILL of a sleeping server, a resume may replace it",
        moment="sealed", outcome="recovered", act="kill", hooks=sleeps, profile={"restart": HEAL}, lives=2,
    ),
    Fault(
        name="sealed-asleep-stop", fault="a stop of a sleeping server", moment="sealed", outcome="stopped", act="stop",
        hooks=sleeps,
    ),
    Fault(
        name="sealed-mapped", fault="the weights are mapped", moment="sealed", outcome="refused", error="StepFailed",
        says="weights", prepare=some_weights, flags=("--map", "{tmp}/weights"),
        profile={"weights": ("{tmp}/weights",), **CLEAN}, hooks=with_contract,
    ),
    Fault(
        name="sealed-deleted", fault="a deleted file is held open", moment="sealed", outcome="refused",
        error="StepFailed", says="weights", prepare=some_weights,
        flags=("--hold-open", "{tmp}/weights", "--unlink-open"), profile=CLEAN, hooks=with_contract,
    ),
    Fault(
        name="sealed-io-uring", fault="an io_uring is set up", moment="sealed", outcome="refused", error="StepFailed",
        says="io_uring", flags=("--io-uring",), profile=CLEAN, hooks=with_contract,
    ),
    Fault(
        name="sealed-in-flight", fault="a request is in flight", moment="sealed", outcome="refused",
        error="StepFailed", says="request", act="ask forever", flags=("--hang-completions-after", "1"), profile=CLEAN,
        hooks=with_contract,
    ),
    Fault(
        name="sealed-clock", fault="the clock jumps: the whole host is suspended, longer than its limits",
        moment="sealed", outcome="recovered", stage="host", act="suspend all", pulse=True,
        profile={"timeouts": Timeouts(start_s=20, probe_s=0.5, step_s=0.5, resume_s=0.8)},
    ),
    Fault(
        name="sealed-stop", fault="a stop", moment="sealed", outcome="stopped", act="stop",
    ),
    Fault(
        name="sealed-daemon-stop", fault="`Daemon.stop`", moment="sealed", outcome="stopped", stage="daemon",
        act="stop",
    ),
    Fault(
        name="sealed-host-killed", fault="SIGKILL of the host of a Daemon", moment="sealed", outcome="stopped",
        status=137, stage="host", act="kill supervisor",
    ),
)
# fmt: on
