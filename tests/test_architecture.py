"""Imports point one way, dangerous calls have one home, modules stay small, and the public names are these."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter

import pytest

import supervisor
from support import ROOT

PACKAGES = ("supervisor", "hooks", "modal_entry")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
LONGEST = 400

every_module = pytest.mark.parametrize("module", sorted(MODULES))


def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def imports(module: str, *, deferred: bool = True) -> Iterator[str]:
    """Every module that a module imports, type-checking imports included; `deferred`: those in functions too."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in walk(tree_of(module), functions=deferred):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([base] if base else [])])
            # `from package import module` imports the module.
            yield from (f"{base}.{a.name}" if f"{base}.{a.name}" in MODULES else base for a in node.names)


def walk(node: ast.AST, *, functions: bool) -> Iterator[ast.AST]:
    """A node and all below it, with or without what runs only when a function is called."""
    yield node
    if functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        for below in ast.iter_child_nodes(node):
            yield from walk(below, functions=functions)


def room(module: str) -> str:
    """The room that a module belongs to: the longest name in the table that it begins with."""
    parts = module.split(".")
    if module != "supervisor" and module.startswith("supervisor.") and ".".join(parts[:2]) not in ARROWS:
        return "leaves"
    names = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((name for name in names if name in ARROWS), "outside")


# The modules beside the rooms of `supervisor`: errors, events, profile, child, steps and their like.
LEAVES = {"leaves"}
BELOW_LIFECYCLE = {f"supervisor.{name}" for name in ("process", "logs", "readiness", "linux", "timing")} | LEAVES
BELOW_REHEARSAL = {"supervisor", "supervisor.loading", "supervisor.lifecycle"} | BELOW_LIFECYCLE
LLAMA = "supervisor.engines.llama_cpp"
# A new engine needs no line here: it may import what every engine may.
ENGINES = {
    name for name, path in MODULES.items() if name.startswith("supervisor.engines.") and path.name == "__init__.py"
}
HOOKS = {
    f"hooks.{name}"
    for name in ("http", "auth", "warmup", "golden", "contract", "artifacts", "smoke", "sleep", "sleep.offload")
}
# What each room may import of the others: every import counts, in functions and for type checkers too.
ARROWS: dict[str, set[str]] = {
    "leaves": set(),
    "supervisor.timing": set(),
    "supervisor.linux": LEAVES,
    "supervisor.logs": {"supervisor.linux"} | LEAVES,
    "supervisor.process": {f"supervisor.{name}" for name in ("logs", "linux", "timing")} | LEAVES,
    "supervisor.readiness": {f"supervisor.{name}" for name in ("process", "logs", "linux", "timing")} | LEAVES,
    "supervisor.lifecycle": BELOW_LIFECYCLE,
    "supervisor": {"supervisor.lifecycle", "supervisor.logs"} | LEAVES,
    "supervisor.control": {"supervisor.lifecycle"} | LEAVES,
    "supervisor.engines": LEAVES,
    **dict.fromkeys(ENGINES, {"supervisor.engines"} | LEAVES),
    "supervisor.engines.embedded": {"supervisor.engines", "supervisor.engines.llama_cpp"} | LEAVES,
    "supervisor.loading": {"supervisor.lifecycle"} | BELOW_LIFECYCLE,
    "supervisor.rehearsal": HOOKS | BELOW_REHEARSAL,
    "supervisor.cli": {"supervisor.rehearsal", "supervisor.engines", "supervisor.control"}
    | {"supervisor.engines.embedded", "supervisor.engines.llama_cpp"}
    | HOOKS
    | BELOW_REHEARSAL,
    "supervisor.__main__": {"supervisor.cli"},
    "hooks": set(),
    "hooks.http": {"supervisor", "supervisor.timing"} | LEAVES,
    "hooks.auth": {"supervisor", "hooks.http"} | LEAVES,
    "hooks.warmup": {"supervisor", "hooks.http"} | LEAVES,
    "hooks.golden": {"supervisor", "hooks.http", "hooks.warmup"} | LEAVES,
    "hooks.contract": {"supervisor", "supervisor.linux", "hooks.http"} | LEAVES,
    "hooks.artifacts": {"supervisor"} | LEAVES,
    "hooks.smoke": {"supervisor", "hooks.http", "hooks.auth", "hooks.warmup"} | LEAVES,
    "hooks.sleep": {"supervisor", "hooks.sleep.offload"} | LEAVES,
    "hooks.sleep.offload": LEAVES,
    # The modules beside the rooms of `modal_entry` are entries.
    "modal_entry": {
        "modal_entry.serving",
        "modal_entry.pipeline.functions",
        "supervisor.engines.llama_cpp",
        "supervisor",
    }
    | HOOKS
    | LEAVES,
    "modal_entry.serving": {"modal_entry.pipeline", "supervisor.engines.llama_cpp", "supervisor.logs", "supervisor"}
    | HOOKS
    | LEAVES,
    "modal_entry.pipeline": {
        "supervisor.engines.llama_cpp",
        "supervisor",
        "hooks.http",
        "hooks.artifacts",
        "hooks.sleep.offload",
        "hooks.smoke",
    }
    | LEAVES,
    "modal_entry.pipeline.functions": {"modal_entry.pipeline", "modal_entry.serving", "supervisor", LLAMA}
    | HOOKS
    | LEAVES,
    "modal_entry.rehearsal": {"modal_entry.serving", "supervisor.rehearsal", "supervisor.engines.llama_cpp"}
    | HOOKS
    | BELOW_REHEARSAL,
}


@every_module
def test_imports_follow_the_table(module: str) -> None:
    """A module imports its own room, and the rooms that the table allows to it."""
    here = room(module)
    stray = {name for name in imports(module) if room(name) not in {here, "outside"} | ARROWS[here]}
    assert not stray, f"{here} may not import these; see ARROWS"


def test_the_table_has_no_circle() -> None:
    """Rooms can be put in an order in which each imports only those before it."""
    list(TopologicalSorter(ARROWS).static_order())


@pytest.mark.parametrize("package", [name for name, path in MODULES.items() if path.name == "__init__.py"])
def test_every_room_says_what_it_may_import(package: str) -> None:
    """Every package is a room of the table, and its docstring says what lives there and what it may import."""
    assert package in ARROWS
    words = (ast.get_docstring(tree_of(package)) or "").replace("\n", " ")
    assert package in PACKAGES or "ay import" in words or "mports nothing" in words


# What each room of the hooks may import of the others.
HOOK_ARROWS = {
    "http": set[str](),
    "artifacts": set[str](),
    "auth": {"http"},
    "warmup": {"http"},
    "golden": {"http"},
    "contract": {"http"},
    "smoke": {"http", "auth", "warmup"},
    "sleep": set(),
}


@pytest.mark.parametrize("module", sorted(name for name in MODULES if name.startswith("hooks.")))
def test_hooks_build_on_one_way_to_ask(module: str) -> None:
    """Every room of the hooks may use hooks.http; smoke uses the checks of auth and warmup; nothing else is shared."""
    room = module.split(".")[1]
    rooms = {name.split(".")[1] for name in imports(module) if name.startswith("hooks.")}
    assert rooms <= {room} | HOOK_ARROWS[room]


def test_the_walk_sees_arrows() -> None:
    """The test above looks at something: these imports exist."""
    assert "hooks.warmup.steps" in set(imports("supervisor.cli.options"))
    assert "supervisor.engines.embedded" in set(imports("supervisor.cli.local"))
    assert "supervisor.errors" in set(imports("supervisor"))
    assert "httpx" in set(imports("supervisor.child"))
    assert "modal_entry.rehearsal.container" in set(imports("modal_entry.rehearsal.inside", deferred=False))


def test_only_a_sandbox_runs_the_rehearsal_of_an_entry() -> None:
    """It is a program of its own: nothing imports it, or Modal would come along."""
    assert not [module for module in MODULES if "modal_entry.rehearsal.inside" in set(imports(module))]


def test_errors_and_events_stand_at_the_bottom() -> None:
    """The errors and the events import nothing of the project, so that everything may import them."""
    for module in ("supervisor.errors", "supervisor.events"):
        assert not {name for name in imports(module) if room(name) != "outside"}


@every_module
def test_processes_have_one_home(module: str) -> None:
    """Only `process` spawns, signals and reaps.

    Engines may ask a binary for its `--help`, the pipeline and the GPU memory's library may be compiled, a rehearsal
    may run Modal's own programs.
    """
    others = {"modal_entry.pipeline.commands", "modal_entry.rehearsal.programs", "hooks.sleep.offload.build"}
    if module in others or room(module).startswith(("supervisor.process", "supervisor.engines")):
        return
    assert not {"subprocess", "multiprocessing", "pty"} & set(imports(module))
    calls = {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    spawning = ("os.exec", "os.spawn", "os.posix_spawn")
    signalling = {"os.kill", "os.killpg", "os.fork", "os.forkpty", "os.system", "os.popen", "signal.pidfd_send_signal"}
    reaping = {"os.wait", "os.waitpid", "os.waitid", "os.wait3", "os.wait4", "anyio.open_process", "anyio.run_process"}
    assert not calls & (signalling | reaping)
    assert not [call for call in calls if call.startswith(spawning)]


def test_files_are_short() -> None:
    """No Python file has more than 400 lines: past that it is split by subject."""
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in (*MODULES.values(), *(ROOT / "tests").rglob("*.py"))
    }
    assert {name for name, count in lines.items() if count > LONGEST} == set()


@every_module
def test_modules_say_what_they_are(module: str) -> None:
    """Every module begins with a docstring."""
    path = MODULES[module]
    assert ast.get_docstring(tree_of(module)) or not path.read_text(encoding="utf-8").strip()


def test_the_public_names() -> None:
    """What users import: a name added or removed here is a decision, and goes into the changelog."""
    assert supervisor.__all__ == [
        "Accept",
        "Child",
        "Daemon",
        "Event",
        "Health",
        "Hooks",
        "Level",
        "Liveness",
        "LogFormat",
        "LogLimits",
        "Observer",
        "ParseLine",
        "Profile",
        "Redactor",
        "Restart",
        "Secret",
        "Sink",
        "State",
        "Step",
        "Stop",
        "Supervised",
        "SupervisorError",
        "Timeouts",
        "accept_2xx",
        "errors",
        "events",
        "plain_line",
        "step",
        "supervise",
    ]
    assert all(hasattr(supervisor, name) for name in supervisor.__all__)


def imported_by(statement: str) -> set[str]:
    """The modules that a fresh interpreter holds after a statement."""
    program = f"import sys, json\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    return set(json.loads(done.stdout))


def test_importing_the_supervisor_is_light() -> None:
    """Import time is part of every cold start: HTTP, logging, hooks, engines and Modal come when they are needed."""
    heavy = {"httpx", "structlog", "rich", "click", "hooks", "modal", "modal_entry", "supervisor.engines"}
    assert not imported_by("import supervisor") & (heavy | {"supervisor.cli", "trio", "xllamacpp"})


def test_the_command_line_starts_without_modal() -> None:
    """Modal takes a second to import, and need not be installed."""
    assert not imported_by("import supervisor.cli") & {"modal", "modal_entry", "modal_proto", "grpclib"}


def test_errors_alone_import_next_to_nothing() -> None:
    """The errors need no third party."""
    program = "import importlib.util as u; s = u.spec_from_file_location('e', 'supervisor/errors.py'); "
    program += "m = u.module_from_spec(s); sys.modules['e'] = m; s.loader.exec_module(m)"
    assert not imported_by(program) & {"anyio", "tenacity", "supervisor"}


@pytest.mark.parametrize("package", [name for name in PACKAGES if (ROOT / name).is_dir()])
def test_packages_are_typed(package: str) -> None:
    """Users' type checkers read our annotations."""
    assert (ROOT / package / "py.typed").is_file()
