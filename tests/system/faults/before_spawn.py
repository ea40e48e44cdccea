"""Faults before the spawn."""

from __future__ import annotations

from supervisor import Hooks
from system.faults.fault import Fault
from system.faults.hook_sets import artifacts_present
from system.faults.prepare import (
    become_nobody,
    closed_model,
    cut_model,
    foreign_binary,
    lost_model,
    plain_file,
    script_without_interpreter,
    without_threads,
)
from system.faults.steps import Asleep, Broken, Descriptors, NoProcesses

# fmt: off
BEFORE_SPAWN: tuple[Fault, ...] = (
    Fault(
        name="port-taken", fault="another server has the port", moment="before spawn", outcome="refused",
        error="PortTaken", status=3, says="is taken by pid", stage="exec", act="hold port",
        options=("--port", "{held}"), lives=0,
    ),
    Fault(
        name="binary-missing", fault="no such binary", moment="before spawn", outcome="refused", error="SpawnError",
        status=3, says="no such program", stage="exec", command=("/no/such/server", "{port}"), lives=0,
    ),
    Fault(
        name="binary-not-executable", fault="the binary is not executable", moment="before spawn", outcome="refused",
        error="SpawnError", status=3, says="not executable", stage="exec", prepare=plain_file,
        command=("{tmp}/server", "{port}"), lives=0,
    ),
    Fault(
        name="binary-foreign", fault="a binary for another architecture", moment="before spawn", outcome="refused",
        error="SpawnError", status=3, says="Exec format error", stage="exec", prepare=foreign_binary,
        command=("{tmp}/server", "{port}"), lives=0,
    ),
    Fault(
        name="interpreter-missing", fault="a script whose interpreter is missing", moment="before spawn",
        outcome="refused", error="SpawnError", status=3, says="interpreter", prepare=script_without_interpreter,
        command=("{tmp}/server", "{port}"), lives=0,
    ),
    Fault(
        name="folder-missing", fault="no such working directory", moment="before spawn", outcome="refused",
        error="SpawnError", status=3, says="working directory", profile={"cwd": "/no/such/folder"}, lives=0,
    ),
    Fault(
        name="key-missing", fault="the variable of the key is not set", moment="before spawn", outcome="refused",
        error="ProfileError", status=2, says="NOT_SET_ANYWHERE", stage="exec",
        options=("--api-key-env", "NOT_SET_ANYWHERE"), lives=0,
    ),
    Fault(
        name="model-missing", fault="the model is missing", moment="before spawn", outcome="refused",
        error="StepFailed", status=4, says="model.gguf: missing", stage="run", prepare=lost_model,
        hooks=artifacts_present, lives=0,
    ),
    Fault(
        name="model-truncated", fault="the model is cut off", moment="before spawn", outcome="refused",
        error="StepFailed", status=4, says="model.gguf: truncated", prepare=cut_model, hooks=artifacts_present, lives=0,
    ),
    Fault(
        name="model-unreadable", fault="the model may not be read", moment="before spawn", outcome="refused",
        error="StepFailed", status=4, says="model.gguf: unreadable: Permission denied", stage="run",
        prepare=closed_model, cripple=become_nobody, hooks=artifacts_present, lives=0,
    ),
    Fault(
        name="descriptors-guardian", fault="out of descriptors, at once", moment="before spawn", outcome="refused",
        error="SpawnError", status=3, says="Too many open files", stage="run",
        hooks=lambda _: Hooks(before_start=(Descriptors(0),)), lives=0,
    ),
    Fault(
        name="descriptors-child", fault="out of descriptors, for the child's pipes", moment="before spawn",
        outcome="refused", error="SpawnError", status=3, says="Too many open files", stage="run",
        hooks=lambda _: Hooks(before_start=(Descriptors(6),)), lives=0,
    ),
    Fault(
        name="processes", fault="out of processes", moment="before spawn", outcome="refused", error="SpawnError",
        status=3, says="Resource temporarily unavailable", stage="run", cripple=become_nobody,
        hooks=lambda _: Hooks(before_start=(NoProcesses(),)), command=("/bin/sleep", "60", "{port}"), lives=0,
    ),
    Fault(
        name="threads", fault="out of threads, at the start", moment="before spawn", outcome="refused",
        error="OutOfResources", status=3, says="can't start new thread", stage="run", cripple=without_threads, lives=0,
    ),
    Fault(
        name="first-step-raises", fault="a `before_start` Step raises", moment="before spawn", outcome="refused",
        error="StepFailed", status=4, says="on purpose", hooks=lambda _: Hooks(before_start=(Broken(),)), lives=0,
    ),
    Fault(
        name="first-step-hangs", fault="a `before_start` Step hangs", moment="before spawn", outcome="refused",
        error="StepFailed", status=4, says="no result within", hooks=lambda _: Hooks(before_start=(Asleep(0.2),)),
        lives=0,
    ),
    Fault(
        name="first-step-cancelled", fault="a stop, in a `before_start` Step", moment="before spawn",
        outcome="stopped", act="stop", hooks=lambda _: Hooks(before_start=(Asleep(),)), lives=0,
    ),
    Fault(
        name="bind-race", fault="the chosen port is lost before the bind", moment="before spawn", outcome="recovered",
        flags=("--bind-fails-once", "{tmp}/failed"), lives=2,
    ),
    Fault(
        name="proxy", fault="a proxy variable that leads nowhere", moment="before spawn", outcome="recovered",
        stage="exec",
        env=dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"), "http://127.0.0.1:9"),
        options=("--warmup", "text"),
    ),
    Fault(
        name="locale", fault="a locale without UTF-8, and garbage in the log", moment="before spawn",
        outcome="recovered", stage="exec",
        env={"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, flags=("--garbage",),
        proof="GARBAGE DONE",
    ),
    Fault(
        name="stderr-full", fault="no space left for the log", moment="before spawn", outcome="recovered",
        stage="exec", under=("sh", "-c", 'exec "$@" 2>/dev/full', "sh"), flags=("--flood-lines-per-s", "1000"),
    ),
    Fault(
        name="stderr-closed", fault="no stderr at all", moment="before spawn", outcome="recovered", stage="exec",
        under=("sh", "-c", 'exec "$@" 0<&- 1>&- 2>&-', "sh"),
    ),
    Fault(
        name="children-ignored", fault="SIGCHLD is ignored by whoever starts us, and the server dies",
        moment="before spawn", outcome="refused", error="DiedBeforeReady", status=3, says="exited with code 1",
        stage="exec", under=("sh", "-c", "trap '' CHLD; exec \"$@\"", "sh"), flags=("--die-while-loading",),
    ),
)
# fmt: on
