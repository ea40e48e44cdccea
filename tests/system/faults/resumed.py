"""Faults at the resume and after it."""

from __future__ import annotations

from supervisor import Liveness, Restart, Timeouts
from system.faults.fault import Fault
from system.faults.hook_sets import answer_after_resume, cannot_wake, with_golden
from system.faults.settings import BLIND, HEAL

# fmt: off
RESUMED: tuple[Fault, ...] = (
    Fault(
        name="resumed-drift", fault="the golden answer is another one", moment="resumed", outcome="failed",
        error="StepFailed", status=4, says="golden", act="drift", flags=("--answer-drift-file", "{tmp}/drift"),
        hooks=with_golden,
    ),
    Fault(
        name="resumed-drift-heal", fault="the same, a resume may replace it", moment="resumed", outcome="recovered",
        act="drift", flags=("--answer-drift-file", "{tmp}/drift"), hooks=with_golden,
        profile={"restart": HEAL}, lives=2,
    ),
    Fault(
        name="resumed-logprobs", fault="the same words, other probabilities", moment="resumed", outcome="failed",
        error="StepFailed", status=4, says="golden", act="drift",
        flags=("--answer-drift-file", "{tmp}/drift", "--logprob-drift", "1.5"), hooks=with_golden,
    ),
    Fault(
        name="resumed-wake-raises", fault="a `wake` Step raises", moment="resumed", outcome="failed",
        error="StepFailed", status=4, says="wake", act="nothing", hooks=cannot_wake,
    ),
    Fault(
        name="resumed-wake-raises-heal", fault="the same, a resume may replace it", moment="resumed",
        outcome="recovered", act="nothing", hooks=cannot_wake, profile={"restart": HEAL}, lives=2,
    ),
    Fault(
        name="resumed-hang-completions", fault="completions hang, a resume may replace it", moment="resumed",
        outcome="recovered", act="nothing", flags=("--hang-completions-after", "1"), hooks=answer_after_resume,
        profile={"restart": HEAL}, lives=2,
    ),
    Fault(
        name="resumed-unhealthy", fault="health says 500", moment="resumed", outcome="failed",
        error="ChildUnresponsive", status=1, says="after the resume: HTTP 500", act="unhealthy",
        flags=("--health-fails-after", "0.3"),
        profile={"timeouts": Timeouts(start_s=20, resume_s=0.5), "liveness": Liveness(armed="resume")},
    ),
    Fault(
        name="resumed-killed", fault="SIGKILL of the server, only a resume may replace it", moment="resumed",
        outcome="failed", error="ChildCrashed", status=1, says="SIGKILL", act="kill", profile={"restart": HEAL},
    ),
    Fault(
        name="resumed-killed-host", fault="the same, with `host_exit_code=1`", moment="resumed", outcome="failed",
        error="ChildCrashed", status=1, stage="host", act="kill",
        profile={"restart": Restart(policy="on-resume", host_exit_code=1)},
    ),
    Fault(
        name="resumed-frozen", fault="SIGSTOP of the server, the watchdog begins at the resume", moment="resumed",
        outcome="failed", error="ChildUnresponsive", status=1, says="no answer within", act="freeze",
        profile={"timeouts": BLIND, "liveness": Liveness(armed="resume", period_s=0.05, misses=3)},
        escalated=False,
    ),
    Fault(
        name="resumed-clock", fault="the clock jumps: SIGSTOP of the host, longer than its limits, then SIGCONT",
        moment="resumed", outcome="recovered", stage="host", act="suspend supervisor", pulse=True,
        profile={"timeouts": Timeouts(start_s=20, probe_s=0.5, step_s=0.5, resume_s=0.8)},
    ),
    Fault(
        name="resumed-stop", fault="a stop", moment="resumed", outcome="stopped", act="stop",
    ),
)
# fmt: on
