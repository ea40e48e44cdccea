"""The fault matrix as data: what goes wrong, when, and how supervision ends. `test_faults` plays every row for real.

Outcomes: `recovered` (it served all along, or serves again, and stopped when asked), `refused` (nothing wrong was ever
served: it never became READY, or the seal was refused and it served on), `failed` (it ended unasked after READY),
`stopped` (it ended as asked, whatever stood in the way).
"""

from __future__ import annotations

import os
import resource
import stat
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import anyio

from hooks.artifacts.marker import MARKER, Marker
from hooks.artifacts.step import Artifact, ArtifactsPresent
from hooks.auth import AuthCheck
from hooks.contract.step import SnapshotContract
from hooks.golden.step import Golden
from hooks.warmup.steps import Ping, Text
from supervisor import Child, Health, Hooks, Liveness, Profile, Restart, Secret, Stop, Timeouts
from support import FAKE, fake_profile

Moment = Literal["before spawn", "loading", "warmup", "ready", "sealed", "resumed", "stopping"]
Outcome = Literal["recovered", "refused", "failed", "stopped"]
Stage = Literal["api", "daemon", "exec", "run", "host"]

MOMENTS: tuple[Moment, ...] = ("before spawn", "loading", "warmup", "ready", "sealed", "resumed", "stopping")
TOKEN = "FAULT_ROW"  # a variable of every process of a row: who still has it at the end was left behind


def _no_hooks(_: Path) -> Hooks:
    return Hooks()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One row.

    Attributes:
        name: of the row, for people who run one.
        fault: what goes wrong, for the table.
        moment: when; what is done by `act` is done then.
        outcome, error, status: how it ends: the error's class ("" for none), and the exit code that `supervise` has,
            or the host of a Daemon; 128 + n for a signal n, as a shell says it.
        says: a part of the error's text.
        stage: played through `supervise()` in this process (api), through a Daemon in this process, or as a process:
            `supervise exec`, `supervise run`, or a host of a Daemon.
        act: what is done at the moment, by name; "" when the server's own flags do it.
        flags: of the fake server; `{tmp}` is a folder of the row's.
        command: instead of the fake server.
        options: of `supervise exec`.
        under: a command that starts `supervise`; env: variables for it.
        profile: fields of the profile (not for exec).
        hooks: made for the row's folder (not for exec).
        prepare: what is done to the row's folder before.
        cripple: what `supervise run` does to itself before it begins.
        lives: children that are started in all.
        proof: a log line of the child's, or an event's detail, that must be seen before it is said to have recovered.
        pulse: the watchdog's inferences must go on for a while before it is said to have recovered.
        escalated: whether KILL was needed in the end; None: either.
    """

    name: str
    fault: str
    moment: Moment
    outcome: Outcome
    error: str = ""
    status: int = 0
    says: str = ""
    stage: Stage = "api"
    act: str = ""
    flags: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    under: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    profile: Mapping[str, Any] = field(default_factory=dict)
    hooks: Callable[[Path], Hooks] = _no_hooks
    prepare: Callable[[Path], None] | None = None
    cripple: Callable[[Path], None] | None = None
    lives: int = 1
    proof: str = ""
    pulse: bool = False
    escalated: bool | None = None

    def argv(self, tmp: Path) -> tuple[str, ...]:
        """The child's command line."""
        words = (*(self.command or fake_profile().command), *self.flags)
        return tuple(_fill(word, tmp) for word in words)

    def build(self, tmp: Path) -> tuple[Profile, Hooks]:
        """What all stages but `supervise exec` supervise."""
        fields = {"stop": Stop(grace_s=5, drain_s=1), **self.profile}
        fields["env"] = {TOKEN: str(tmp), **fields.get("env", {})}
        fields["weights"] = tuple(_fill(word, tmp) for word in fields.get("weights", ()))
        hooks = self.hooks(tmp)
        if self.pulse:
            fields.setdefault("liveness", Liveness(period_s=0.05, misses=3, inference_every_s=0.01))
            hooks = Hooks(**{**{n: getattr(hooks, n) for n in Hooks.__slots__}, "liveness": (Pulse(tmp / "pulse"),)})
        return fake_profile(**{**fields, "command": self.argv(tmp)}), hooks


def _fill(text: str, tmp: Path) -> str:
    return text.replace("{tmp}", str(tmp)).replace("{fake}", str(FAKE)).replace("{python}", sys.executable)


# What rows are made of


class Pulse:
    """A liveness Step that leaves a mark each time."""

    name: str = "pulse"
    deadline_s: float | None = 5.0

    def __init__(self, path: Path) -> None:
        self.path = path

    async def __call__(self, child: Child) -> None:
        """Ask, then mark."""
        await Ping()(child)
        with self.path.open("ab") as file:
            file.write(b".")


class Asleep:
    """A Step that never ends by itself."""

    name: str = "asleep"

    def __init__(self, deadline_s: float | None = None) -> None:
        self.deadline_s: float | None = deadline_s

    async def __call__(self, child: Child) -> None:  # noqa: ARG002
        """Sleep."""
        await anyio.sleep_forever()


class Broken:
    """A Step that raises."""

    name: str = "broken"
    deadline_s: float | None = None

    async def __call__(self, child: Child) -> None:  # noqa: ARG002
        """Raise."""
        raise LookupError("on purpose")


class Descriptors:
    """A Step that leaves this process so many descriptors, and no more."""

    name: str = "descriptors"
    deadline_s: float | None = None

    def __init__(self, left: int) -> None:
        self.left = left

    async def __call__(self, child: Child) -> None:  # noqa: ARG002
        """Set the limit."""
        used = os.dup(0)  # the lowest that is free
        os.close(used)
        resource.setrlimit(resource.RLIMIT_NOFILE, (used + self.left, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def _no_threads(tmp: Path) -> None:
    """Becomes a user who may start no thread."""
    _nobody(tmp)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))


class NoProcesses:
    """A Step that leaves this process's user no process and no thread. It does not bind root: `_nobody` comes first."""

    name: str = "no processes"
    deadline_s: float | None = None

    async def __call__(self, child: Child) -> None:  # noqa: ARG002
        """Set the limit."""
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))


def _nobody(_: Path) -> None:
    """Becomes a user without rights; without root's, that is what we are already."""
    # The interpreter and this checkout may be in root's home: what is imported late must be there before.
    import encodings.idna  # noqa: F401

    import anyio._backends._asyncio  # noqa: F401
    import httpx
    import structlog  # noqa: F401

    httpx.AsyncClient(trust_env=False)  # which imports its transport
    if os.geteuid() == 0:
        uid = 60_000 + os.getpid() % 5000  # RLIMIT_NPROC counts by user
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)


def _model(tmp: Path) -> None:
    """A model that is whole, and says so in a marker."""
    from fakes.gguf_files import write_gguf  # here, because it imports numpy

    write_gguf(tmp / "model.gguf")
    Marker.of(tmp, ("model.gguf",), repo="some/repo", revision="main").save(tmp)


def _lost_model(tmp: Path) -> None:
    _model(tmp)
    (tmp / "model.gguf").unlink()


def _cut_model(tmp: Path) -> None:
    _model(tmp)
    os.truncate(tmp / "model.gguf", (tmp / "model.gguf").stat().st_size - 400)
    (tmp / MARKER).unlink()
    Marker.of(tmp, ("model.gguf",), repo="some/repo", revision="main").save(tmp)  # the marker believes it


def _closed_model(tmp: Path) -> None:
    _model(tmp)
    (tmp / "model.gguf").chmod(0)


def _foreign_elf(tmp: Path) -> None:
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    head = struct.pack("<HHIQQQIHHHHHH", 2, 0xFEED, 1, 0x400078, 64, 0, 0, 64, 56, 1, 0, 0, 0)  # no such machine
    (tmp / "server").write_bytes((ident + head).ljust(4096, b"\0"))
    (tmp / "server").chmod(0o755)


def _not_executable(tmp: Path) -> None:
    (tmp / "server").write_text("#!/bin/sh\n")
    (tmp / "server").chmod(stat.S_IRUSR | stat.S_IWUSR)


def _no_interpreter(tmp: Path) -> None:
    (tmp / "server").write_text("#!/no/such/interpreter\n")
    (tmp / "server").chmod(0o755)


def _weights(tmp: Path) -> None:
    (tmp / "weights").write_bytes(b"\0" * 4_000_000)


def _artifacts(tmp: Path) -> Hooks:
    return Hooks(before_start=(ArtifactsPresent(root=tmp, artifacts=(Artifact(path="model.gguf"),)),))


def _text(_: Path) -> Hooks:
    return Hooks(warmup=(Text(),))


def _impatient(_: Path) -> Hooks:
    return Hooks(warmup=(Text(deadline_s=0.4),))


def _contract(_: Path) -> Hooks:
    return Hooks(warmup=(Text(),), before_seal=(SnapshotContract(),))


def _golden(_: Path) -> Hooks:
    golden = Golden()
    return Hooks(warmup=(Text(),), before_seal=(golden.record,), after_resume=(golden.replay,))


def _after_resume(_: Path) -> Hooks:
    return Hooks(warmup=(Text(),), after_resume=(Text(deadline_s=0.4),))


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


def _pings(_: Path) -> Hooks:
    return Hooks(warmup=(Text(),), liveness=(Ping(deadline_s=0.3),))


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
        error="SpawnError", status=3, says="not executable", stage="exec", prepare=_not_executable,
        command=("{tmp}/server", "{port}"), lives=0,
    ),
    Fault(
        name="binary-foreign", fault="a binary for another architecture", moment="before spawn", outcome="refused",
        error="SpawnError", status=3, says="Exec format error", stage="exec", prepare=_foreign_elf,
        command=("{tmp}/server", "{port}"), lives=0,
    ),
    Fault(
        name="interpreter-missing", fault="a script whose interpreter is missing", moment="before spawn",
        outcome="refused", error="SpawnError", status=3, says="interpreter", prepare=_no_interpreter,
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
        error="StepFailed", status=4, says="model.gguf: missing", stage="run", prepare=_lost_model, hooks=_artifacts,
        lives=0,
    ),
    Fault(
        name="model-truncated", fault="the model is cut off", moment="before spawn", outcome="refused",
        error="StepFailed", status=4, says="model.gguf: truncated", prepare=_cut_model, hooks=_artifacts, lives=0,
    ),
    Fault(
        name="model-unreadable", fault="the model may not be read", moment="before spawn", outcome="refused",
        error="StepFailed", status=4, says="model.gguf: unreadable: Permission denied", stage="run",
        prepare=_closed_model, cripple=_nobody, hooks=_artifacts, lives=0,
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
        status=3, says="Resource temporarily unavailable", stage="run", cripple=_nobody,
        hooks=lambda _: Hooks(before_start=(NoProcesses(),)), command=("/bin/sleep", "60", "{port}"), lives=0,
    ),
    Fault(
        name="threads", fault="out of threads, at the start", moment="before spawn", outcome="refused",
        error="OutOfResources", status=3, says="can't start new thread", stage="run", cripple=_no_threads, lives=0,
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
        status=3, says="the load stalled", prepare=_weights, profile={"timeouts": STALL},
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

WARMUP: tuple[Fault, ...] = (
    *(
        Fault(
            name=f"warmup-{kind}", fault=words, moment="warmup", outcome="refused", error="StepFailed", status=4,
            says="warmup step 'text' failed", flags=("--answer", kind), hooks=_text, stage="api",
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
        error="StepFailed", status=4, says="warmup step 'text'", flags=("--hang-completions",), hooks=_impatient,
    ),
    Fault(
        name="warmup-frozen", fault="SIGSTOP of the server", moment="warmup", outcome="refused", error="StepFailed",
        status=4, says="warmup step 'text'", act="freeze", flags=("--gate", "{tmp}/never"), hooks=_impatient,
        escalated=False,
    ),
    Fault(
        name="warmup-blink", fault="SIGSTOP of the server, then SIGCONT", moment="warmup", outcome="recovered",
        act="blink", flags=("--slow-first-byte", "0.3"), hooks=_text,
    ),
    Fault(
        name="warmup-suspended", fault="SIGSTOP of the supervisor, longer than the Step's deadline, then SIGCONT",
        moment="warmup", outcome="recovered", stage="run", act="suspend supervisor",
        flags=("--slow-first-byte", "0.3"), hooks=_text, profile={"timeouts": Timeouts(start_s=20, step_s=0.8)},
    ),
    Fault(
        name="warmup-host-suspended", fault="the whole host is suspended, longer than the Step's deadline",
        moment="warmup", outcome="recovered", stage="run", act="suspend all", flags=("--slow-first-byte", "0.3"),
        hooks=_text, profile={"timeouts": Timeouts(start_s=20, step_s=0.8)},
    ),
    Fault(
        name="warmup-killed", fault="SIGKILL of the server, a restart is allowed", moment="warmup",
        outcome="recovered", act="kill", flags=("--slow-first-byte", "0.3"), hooks=_text, profile={"restart": QUICK},
        lives=2,
    ),
    Fault(
        name="warmup-slow", fault="the first answer is slow", moment="warmup", outcome="recovered",
        flags=("--slow-first-byte", "0.3"), hooks=_text,
    ),
    Fault(
        name="warmup-open", fault="the server does not ask for its key", moment="warmup", outcome="refused",
        error="StepFailed", status=4, says="the server is open", stage="exec", env={"LLAMA_API_KEY": KEY.reveal()},
        flags=("--open",), options=("--api-key-env", "LLAMA_API_KEY", "--auth-check"),
    ),
    Fault(
        name="warmup-key-refused", fault="the server refuses its key", moment="warmup", outcome="refused",
        error="StepFailed", status=4, says="refuses the profile's api_key", flags=("--reject-key",),
        profile={"api_key": KEY, "api_key_env": "LLAMA_API_KEY"}, hooks=lambda _: Hooks(warmup=(AuthCheck(),)),
    ),
    Fault(
        name="warmup-stop", fault="a stop", moment="warmup", outcome="stopped", act="stop",
        flags=("--gate", "{tmp}/never"), hooks=_text,
    ),
)

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
        profile={"liveness": PINGS}, hooks=_pings,
    ),
    Fault(
        name="ready-nonsense", fault="completions are errors, health is green", moment="ready", outcome="failed",
        error="ChildUnresponsive", status=1, says="ping", flags=("--answer", "error", "--answer-after", "1"),
        profile={"liveness": PINGS}, hooks=_pings,
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
        stage="run", hooks=lambda _: Hooks(warmup=(Descriptors(0),)), profile={"liveness": WATCH},
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

SEALED: tuple[Fault, ...] = (
    Fault(
        name="sealed-killed", fault="SIGKILL of the server", moment="sealed", outcome="failed", error="ChildCrashed",
        status=1, says="SIGKILL", act="kill",
    ),
    Fault(
        name="sealed-killed-heal", fault="the same, a resume may replace it", moment="sealed", outcome="recovered",
        act="kill", hooks=_text, profile={"restart": HEAL}, lives=2,
    ),
    Fault(
        name="sealed-killed-daemon", fault="the same, under a Daemon", moment="sealed", outcome="recovered",
        stage="daemon", act="kill", hooks=_text, profile={"restart": HEAL}, lives=2,
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
        name="sealed-mapped", fault="the weights are mapped", moment="sealed", outcome="refused", error="StepFailed",
        says="weights", prepare=_weights, flags=("--map", "{tmp}/weights"),
        profile={"weights": ("{tmp}/weights",), **CLEAN}, hooks=_contract,
    ),
    Fault(
        name="sealed-deleted", fault="a deleted file is held open", moment="sealed", outcome="refused",
        error="StepFailed", says="weights", prepare=_weights, flags=("--hold-open", "{tmp}/weights", "--unlink-open"),
        profile=CLEAN, hooks=_contract,
    ),
    Fault(
        name="sealed-io-uring", fault="an io_uring is set up", moment="sealed", outcome="refused", error="StepFailed",
        says="io_uring", flags=("--io-uring",), profile=CLEAN, hooks=_contract,
    ),
    Fault(
        name="sealed-in-flight", fault="a request is in flight", moment="sealed", outcome="refused",
        error="StepFailed", says="request", act="ask forever", flags=("--hang-completions-after", "1"), profile=CLEAN,
        hooks=_contract,
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

RESUMED: tuple[Fault, ...] = (
    Fault(
        name="resumed-drift", fault="the golden answer is another one", moment="resumed", outcome="failed",
        error="StepFailed", status=4, says="golden", act="drift", flags=("--answer-drift-file", "{tmp}/drift"),
        hooks=_golden,
    ),
    Fault(
        name="resumed-drift-heal", fault="the same, a resume may replace it", moment="resumed", outcome="recovered",
        act="drift", flags=("--answer-drift-file", "{tmp}/drift"), hooks=_golden, profile={"restart": HEAL}, lives=2,
    ),
    Fault(
        name="resumed-logprobs", fault="the same words, other probabilities", moment="resumed", outcome="failed",
        error="StepFailed", status=4, says="golden", act="drift",
        flags=("--answer-drift-file", "{tmp}/drift", "--logprob-drift", "1.5"), hooks=_golden,
    ),
    Fault(
        name="resumed-hang-completions", fault="completions hang, a resume may replace it", moment="resumed",
        outcome="recovered", act="nothing", flags=("--hang-completions-after", "1"), hooks=_after_resume,
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
        act="stop", flags=("--ignore-sigterm",), options=("--grace-s", "600"),
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

MATRIX: tuple[Fault, ...] = (*BEFORE_SPAWN, *LOADING, *WARMUP, *READY, *SEALED, *RESUMED, *STOPPING)


def row(name: str) -> Fault:
    """The row of a name."""
    return next(fault for fault in MATRIX if fault.name == name)
