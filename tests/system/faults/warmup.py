"""Faults during the warmup."""

from __future__ import annotations

from hooks.auth import AuthCheck
from hooks.warmup.steps import Text
from supervisor import Hooks, Timeouts
from system.faults.fault import Fault
from system.faults.hook_sets import warmed, warmed_in_a_hurry
from system.faults.settings import KEY, QUICK

ODD = {
    "empty": "an empty answer",
    "whitespace": "an answer of blanks",
    "degenerate": "one token over and over",
    "null": "an answer that is null",
    "error": "200 with an error in it",
    "invalid-json": "an answer that is no JSON",
    "cut": "an answer that breaks off",
    "no-choices": "an answer without choices",
    "html": "a web page for an answer",
}


# fmt: off
WARMUP: tuple[Fault, ...] = (
    *(
        Fault(
            name=f"warmup-{kind}", fault=words, moment="warmup", outcome="refused", error="StepFailed", status=4,
            says="warmup step 'text' failed", flags=("--answer", kind), hooks=warmed, stage="api",
        )
        for kind, words in ODD.items()
    ),
    Fault(
        name="warmup-empty-exec", fault="an empty answer, to the command line", moment="warmup", outcome="refused",
        error="StepFailed", status=4, says='"content": ""', stage="exec", flags=("--answer", "empty"),
        options=("--warmup", "text"),
    ),
    Fault(
        name="warmup-exit", fault="exit code 7", moment="warmup", outcome="refused", error="DiedBeforeReady", status=3,
        says="exited with code 7 during warmup", flags=("--exit-after-requests", "1", "--exit-code", "7"),
        hooks=lambda _: Hooks(warmup=(Text(), Text(name="again"))),
    ),
    Fault(
        name="warmup-sigsegv", fault="SIGSEGV", moment="warmup", outcome="refused", error="DiedBeforeReady", status=3,
        says="SIGSEGV during warmup", flags=("--signal-after-requests", "1", "--signal", "SIGSEGV"),
        hooks=lambda _: Hooks(warmup=(Text(), Text(name="again"))),
    ),
    Fault(
        name="warmup-hang", fault="completions hang, health is green", moment="warmup", outcome="refused",
        error="StepFailed", status=4, says="warmup step 'text'", flags=("--hang-completions",), hooks=warmed_in_a_hurry,
    ),
    Fault(
        name="warmup-frozen", fault="SIGSTOP of the server", moment="warmup", outcome="refused", error="StepFailed",
        status=4, says="warmup step 'text'", act="freeze", flags=("--gate", "{tmp}/never"), hooks=warmed_in_a_hurry,
        escalated=False,
    ),
    Fault(
        name="warmup-blink", fault="SIGSTOP of the server, then SIGCONT", moment="warmup", outcome="recovered",
        act="blink", flags=("--slow-first-byte", "0.3"), hooks=warmed,
    ),
    Fault(
        name="warmup-suspended", fault="SIGSTOP of the supervisor, longer than the Step's deadline, then SIGCONT",
        moment="warmup", outcome="recovered", stage="run", act="suspend supervisor",
        flags=("--slow-first-byte", "0.3"), hooks=warmed, profile={"timeouts": Timeouts(start_s=20, step_s=0.8)},
    ),
    Fault(
        name="warmup-host-suspended", fault="the whole host is suspended, longer than the Step's deadline",
        moment="warmup", outcome="recovered", stage="run", act="suspend all", flags=("--slow-first-byte", "0.3"),
        hooks=warmed, profile={"timeouts": Timeouts(start_s=20, step_s=0.8)},
    ),
    Fault(
        name="warmup-killed", fault="SIGKILL of the server, a restart is allowed", moment="warmup",
        outcome="recovered", act="kill", flags=("--slow-first-byte", "0.3"), hooks=warmed, profile={"restart": QUICK},
        lives=2,
    ),
    Fault(
        name="warmup-slow", fault="the first answer is slow", moment="warmup", outcome="recovered",
        flags=("--slow-first-byte", "0.3"), hooks=warmed,
    ),
    Fault(
        name="warmup-open", fault="the server does not ask for its key", moment="warmup", outcome="refused",
        error="StepFailed", status=4, says="the server is open", stage="exec", env={"LLAMA_API_KEY": KEY.reveal()},
        flags=("--open",), options=("--api-key-env", "LLAMA_API_KEY", "--auth-check"),
    ),
    Fault(
        name="warmup-key-refused", fault="the server refuses its key", moment="warmup", outcome="refused",
        error="StepFailed", status=4, says="the server refuses the", flags=("--reject-key",),
        profile={"api_key": KEY, "api_key_env": "LLAMA_API_KEY"}, hooks=lambda _: Hooks(warmup=(AuthCheck(),)),
    ),
    Fault(
        name="warmup-stop", fault="a stop", moment="warmup", outcome="stopped", act="stop",
        flags=("--gate", "{tmp}/never"), hooks=warmed,
    ),
)
# fmt: on
