"""One class a cause, with fields, a message built from them, and an exit code."""

from __future__ import annotations

import ast
import copy
import dataclasses
import inspect
import pickle
import re

import pytest

from supervisor import errors
from supervisor.errors import (
    ChildCrashed,
    ChildUnresponsive,
    DiedBeforeReady,
    IllegalState,
    LoadStalled,
    OutOfResources,
    PortTaken,
    ProfileError,
    ReadinessTimeout,
    SpawnError,
    StepFailed,
    StillAsleep,
    SupervisorError,
    UnsupportedFlag,
    WorkerDied,
    WorkerDiedBeforeReady,
    WrongModel,
)

TAIL = ("loading weights", "ggml: out of memory")

# Every error that is raised, its exit code, and what its message must say.
SAMPLES: list[tuple[SupervisorError, int, list[str]]] = [
    (ProfileError(field="port", value=-1, allowed="0 to 9"), 2, ["port=-1", "0 to 9"]),
    (
        UnsupportedFlag(field="mlock", value=True, allowed="--mlock", binary="/bin/llama-server"),
        2,
        ["mlock=True", "--mlock", "/bin/llama-server", "drop the setting"],
    ),
    (SpawnError(argv=("nothing", "-x"), reason="No such file"), 3, ["'nothing'", "No such file"]),
    (
        DiedBeforeReady(exit_code=None, signal="SIGSEGV", during="loading", waited_s=1.5, tail=TAIL),
        3,
        ["SIGSEGV", "loading", "1.50 s"],
    ),
    (
        DiedBeforeReady(exit_code=1, signal=None, during="loading", waited_s=1, out_of_memory="cudaMalloc failed"),
        3,
        ["code 1", "could not allocate memory (cudaMalloc failed)", "smaller context"],
    ),
    (DiedBeforeReady(exit_code=0, signal=None, during="warmup", waited_s=1), 3, ["code 0", "warmup", "printed help"]),
    (DiedBeforeReady(exit_code=None, signal="SIGKILL", during="loading", waited_s=1), 3, ["SIGKILL", "memory"]),
    (DiedBeforeReady(exit_code=None, signal="SIGILL", during="loading", waited_s=1), 3, ["SIGILL", "instructions"]),
    (
        ReadinessTimeout(waited_s=600, probes=42, detail="HTTP 503", tail=TAIL),
        3,
        ["600.0 s", "42 probes", "HTTP 503", "Raise the start timeout"],
    ),
    (ReadinessTimeout(waited_s=9, probes=4, detail="port 1 speaks TLS", may_still_load=False), 3, ["speaks TLS."]),
    (
        OutOfResources(reason="can't start new thread", look_at="`ulimit -u`"),
        3,
        ["out of resources", "can't start new thread", "Look at `ulimit -u`"],
    ),
    (
        LoadStalled(waited_s=9, stall_s=120, bytes_read=10, total_bytes=99, detail="refused", tail=TAIL),
        3,
        ["120 s", "10 of 99 bytes", "refused", "file system"],
    ),
    (LoadStalled(waited_s=9, stall_s=1, bytes_read=10, total_bytes=None, detail="refused"), 3, ["(10 bytes read"]),
    (
        PortTaken(waited_s=1, host="127.0.0.1", port=80, pid=7, command="nginx"),
        3,
        ["127.0.0.1:80", "pid 7 (nginx)", "port 0"],
    ),
    (PortTaken(waited_s=1, host="::1", port=80, pid=None, command=None), 3, ["cannot see"]),
    (WrongModel(waited_s=1, wanted="gemma", seen="it lists nothing"), 3, ["'gemma'", "it lists nothing", "alias"]),
    (
        StepFailed(point="warmup", step="text", took_s=1.25, reason="HTTP 401", tail=TAIL),
        4,
        ["warmup", "'text'", "1.25 s", "HTTP 401"],
    ),
    (ChildCrashed(exit_code=139, signal=None, uptime_s=3.25, tail=TAIL), 1, ["code 139", "unasked", "3.2 s"]),
    (
        WorkerDied(exit_code=None, signal="SIGKILL", uptime_s=3.25, worker_pid=7, worker="core --rank 0", tail=TAIL),
        1,
        ["process 7 (core --rank 0) was killed by SIGKILL", "3.2 s", "cannot serve without it"],
    ),
    (
        WorkerDiedBeforeReady(
            exit_code=None, signal=None, during="loading", waited_s=1, worker_pid=7, worker="core", tail=TAIL
        ),
        3,
        ["process 7 (core) ended during loading", "1.00 s"],
    ),
    (ChildUnresponsive(misses=3, detail="timed out", tail=TAIL), 1, ["3 checks", "timed out"]),
    (StillAsleep(reason="the GPU is full"), 1, ["sleeps on, unharmed", "the GPU is full"]),
    (IllegalState(operation="seal", state="loading", allowed="ready"), 1, ["seal", "loading", "ready"]),
]
samples = pytest.mark.parametrize(("error", "status", "parts"), SAMPLES, ids=lambda value: type(value).__name__)


def drawn_tree() -> dict[str, tuple[str | None, int | None]]:
    """The tree in the module's docstring: class name to (parent, exit code where one is drawn)."""
    assert errors.__doc__
    found: dict[str, tuple[str | None, int | None]] = {}
    path: list[str] = []
    for line in errors.__doc__.splitlines():
        if match := re.match(r"((?:│   |    )*(?:├── |└── )|)([A-Z]\w+) {2,}(\d?)", line):
            depth = len(match[1]) // 4
            path[depth:] = [match[2]]
            found[match[2]] = (path[depth - 1] if depth else None, int(match[3]) if match[3] else None)
    return found


def real_classes() -> dict[str, type[SupervisorError]]:
    members = inspect.getmembers(errors, inspect.isclass)
    return {name: kind for name, kind in members if issubclass(kind, SupervisorError)}


def test_the_drawn_tree_is_the_real_one() -> None:
    """The docstring shows every class, under its base, with its exit code; nothing else."""
    drawn, real = drawn_tree(), real_classes()
    assert set(drawn) == set(real) == set(errors.__all__)
    for name, (parent, _) in drawn.items():
        if parent is not None:
            assert real[name].__bases__[0].__name__ == parent
            assert real[name].cli_status == drawn_status(drawn, name), name


def drawn_status(drawn: dict[str, tuple[str | None, int | None]], name: str) -> int | None:
    """The exit code that is drawn beside a class, or beside the nearest class above it."""
    parent, status = drawn[name]
    return status if status is not None or parent is None else drawn_status(drawn, parent)


def test_every_error_that_is_raised_has_a_sample_here() -> None:
    """A class that is added later without a sample is noticed; bases are not raised."""
    bases = {parent for parent, _ in drawn_tree().values()} - {"ProfileError", "DiedBeforeReady", "ChildCrashed"}
    assert {type(error).__name__ for error, _, _ in SAMPLES} == set(errors.__all__) - bases


@samples
def test_messages_are_built_from_the_fields(error: SupervisorError, status: int, parts: list[str]) -> None:
    """What happened, what was seen, what to try: in the message, and each part from a field."""
    assert isinstance(error, SupervisorError)
    assert error.cli_status == status
    assert all(part in error.summary for part in parts), error.summary
    assert error.summary.count("\n") == 0
    assert not error.args


@samples
def test_the_tail_is_shown_indented(error: SupervisorError, status: int, parts: list[str]) -> None:
    """The child's last lines follow the summary, set apart from it; without any, the message is the summary."""
    del status, parts
    tail: tuple[str, ...] = getattr(error, "tail", ())
    assert str(error) == "\n".join([error.summary, *(["Its last lines:"] if tail else []), *(f"    {t}" for t in tail)])


@samples
def test_errors_survive_pickle_and_copy(error: SupervisorError, status: int, parts: list[str]) -> None:
    """Hosts send errors between processes: class, fields, notes and message arrive."""
    del status, parts
    noted = copy.copy(error)
    noted.add_note("seen on host a")
    assert not getattr(error, "__notes__", ())
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for again in (pickle.loads(pickle.dumps(noted, protocol)), copy.deepcopy(noted)):  # noqa: S301  our own bytes
            assert type(again) is type(error)
            assert str(again) == str(error)
            assert repr(again) == repr(error)
            assert vars(again) == vars(noted)
            assert again.__notes__ == ["seen on host a"]


@samples
def test_fields_have_names(error: SupervisorError, status: int, parts: list[str]) -> None:
    """A handler reads fields, never a message; `repr`, which is all that some hosts show, holds the message."""
    del status, parts
    names = {field.name for field in dataclasses.fields(error)}  # type: ignore[arg-type]
    assert vars(error).keys() <= names
    assert repr(error) == f"{type(error).__name__}({error.summary!r})"


def test_a_profile_error_is_a_value_error() -> None:
    """Code that knows nothing of warmboot still understands a wrong argument."""
    assert issubclass(ProfileError, ValueError)
    assert issubclass(UnsupportedFlag, ValueError)


def test_errors_are_told_apart_by_identity() -> None:
    """Two failures with the same fields are two failures, and an error can be a key (`traceback` needs that)."""
    first = ChildUnresponsive(misses=3, detail="x")
    second = ChildUnresponsive(misses=3, detail="x")
    assert first != second
    assert len({first, second}) == 2


def test_errors_import_nothing_of_the_project() -> None:
    """Anything may import the errors without pulling in the rest."""
    tree = ast.parse(inspect.getsource(errors))
    imported = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert imported == ["__future__", "dataclasses", "typing"]
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import)]
