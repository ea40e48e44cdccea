"""Imports point one way, dangerous calls have one home, modules stay small, and the public names are these."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

import supervisor
from support import ROOT

PACKAGES = ("supervisor", "hooks", "modal_entry")
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
LONG = "Over 250 lines because"

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


def layer(module: str) -> str:
    """What part of the house a module belongs to."""
    match module.split("."):
        case ["supervisor", ("cli" | "engines" | "loading" | "rehearsal") as part, *_]:
            return part
        case ["supervisor", "__main__"]:
            return "main"
        case ["supervisor", *_]:
            return "core"
        case [("hooks" | "modal_entry" | "modal") as part, *_]:
            return part
    return "outside"


# What each part may import of the others.
ARROWS = {
    "core": {"core"},
    "engines": {"engines", "core"},
    "hooks": {"hooks", "core"},
    "loading": {"loading", "core"},
    "rehearsal": {"rehearsal", "loading", "engines", "hooks", "core"},
    "cli": {"cli", "rehearsal", "loading", "engines", "hooks", "core"},
    "main": {"cli"},
    "modal_entry": {"modal_entry", "modal", "hooks", "engines", "rehearsal", "loading", "core"},
}


@every_module
def test_imports_point_one_way(module: str) -> None:
    """modal_entry -> hooks -> supervisor; engines -> core; the command line sees them all, and nobody sees it."""
    allowed = ARROWS[layer(module)] | {"outside"}
    reversed_ = {name for name in imports(module) if layer(name) not in allowed}
    assert not reversed_


# What each room of the hooks may import of the others.
HOOK_ARROWS = {
    "http": set[str](),
    "artifacts": set[str](),
    "auth": {"http"},
    "warmup": {"http"},
    "golden": {"http"},
    "contract": {"http"},
    "smoke": {"http", "auth", "warmup"},
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
        assert not {name for name in imports(module) if layer(name) != "outside"}


@every_module
def test_processes_have_one_home(module: str) -> None:
    """Only `process` spawns, signals and reaps.

    Engines may ask a binary for its `--help`, the pipeline may compile, a rehearsal may run Modal's own programs.
    """
    if (
        module in {"supervisor.process.process", "modal_entry.pipeline.commands", "modal_entry.rehearsal.programs"}
        or layer(module) == "engines"
    ):
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


@every_module
def test_modules_are_small_or_say_why_not(module: str) -> None:
    """Past 250 lines a module is split, or its docstring gives the reason."""
    tree = tree_of(module)
    lines = len(MODULES[module].read_text(encoding="utf-8").splitlines())
    assert lines <= 250 or LONG in (ast.get_docstring(tree) or ""), f"{lines} lines"


@every_module
def test_modules_say_what_they_are(module: str) -> None:
    """Every module begins with a docstring."""
    path = MODULES[module]
    assert ast.get_docstring(tree_of(module)) or not path.read_text(encoding="utf-8").strip()


def test_the_public_names() -> None:
    """What users import: a name added or removed here is a decision, and goes into the changelog."""
    assert supervisor.__all__ == [
        "Child",
        "Daemon",
        "Event",
        "Health",
        "Hooks",
        "Liveness",
        "LogLimits",
        "Observer",
        "Profile",
        "Redactor",
        "Restart",
        "Secret",
        "State",
        "Step",
        "Stop",
        "Supervised",
        "SupervisorError",
        "Timeouts",
        "errors",
        "events",
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
