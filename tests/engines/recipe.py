"""How a real engine is installed, given a model, started and asked: one `RECIPE` a folder."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import engines
from hooks.contract import SnapshotContract
from hooks.golden import Golden
from hooks.warmup import Ping, Text
from supervisor import Hooks, Secret
from supervisor.dialect import Request
from supervisor.engines.base import Engine
from supervisor.errors import require
from supervisor.steps import Step

if TYPE_CHECKING:
    from engines.environment import Environment

__all__ = ["CHAT", "CHECKS", "LEADER", "Lacking", "Recipe", "Recorded", "Sleep", "named", "recipes"]

CHECKS: Final = ("load", "warm", "auth", "answers", "seal", "sleep", "hang", "crash", "stop")
"""What is checked, in this order; `--only` and `lacks` take these names. One life of the server serves them all until
`hang`; the hang and each crash cost one cold start."""

LEADER: Final = "the leader"
"""In `processes` and `hang`: the process that was started, whatever its name."""

CHAT: Final = Request(
    path="/v1/chat/completions",
    body={"messages": [{"role": "user", "content": "What does the sea do at night?"}], "max_tokens": 12},
)


class Lacking(Exception):
    """This platform lacks something that the engine needs; say what by name. Raise it in `prepare` or `make_model`."""


class Recorded(Protocol):
    """A golden answer: two Steps that share a recording."""

    @property
    def record(self) -> Step: ...

    @property
    def replay(self) -> Step: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sleep:
    """A way to sleep, tried on the running server: sealed with `sleep` Steps, resumed with `wake` Steps.

    Attributes:
        name: for the table, such as `level 1`.
        hooks: the engine's settings -> Hooks of which `sleep` and `wake` are taken; the server stays the same one.
        healthy: what the health path says while it sleeps: 200, another status, or None: it must not be asked.
    """

    name: str
    hooks: Callable[[Engine], Hooks] = lambda engine: engine.hooks()
    healthy: int | None = None


def _nothing(_: Environment) -> None:
    """Most engines need nothing more than their requirements."""


def _no_model(_: Environment, __: Path) -> None:
    """An engine that brings its model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A real engine, and what is tried on it.

    Attributes:
        name: of the engine, as the catalogue calls it, or of a variant (`llama.cpp router`).
        engine: (environment, folder of the model, key) -> the settings whose `profile()` and `hooks()` are supervised.
            The harness adds golden answers and the contract at the seal, restarts, and a quick watchdog.
        package: the distribution whose version the table shows; None: `version` says it.
        version: environment -> version, where `package` cannot tell.
        requirements: the file with the pinned requirements of an environment of its own; None: ours serves.
            Every file of the recipe's folder is part of the stamp: an edit installs anew.
        prepare: after the install: stubs, uninstalls, wheels without dependencies (`env.install("--no-deps", ...)`).
        make_model: writes the model into an empty folder, usually by `env.run(env.python, HERE / "model.py", folder)`.
        processes: name -> regular expression for the command line or name of a process of the tree; each is killed in
            turn. A cold start each: name those that differ, the leader (`LEADER`) among them.
        hang: a regular expression for the process that is stopped (SIGSTOP) for the hang; `LEADER`: the leader.
        sleeps: the ways to sleep, or the reason why the engine has none.
        requests: asked twice each; answers must be equal: token by token with log-probabilities for chats and
            completions, byte by byte for pictures, else the whole JSON without ids and times.
        tolerance: how far apart log-probabilities may be.
        golden: makes the golden answers of a run.
        warmup, liveness: Steps, as in Hooks. Liveness only runs during the check `hang`.
        contract: checked at the seal; waive here what this engine is known to hold, and say why beside it.
        lacks: check, or `check: variant` (`sleep: level 2`, `crash: Worker`) -> what this platform lacks for it.
        start_s: the longest cold start, with two cores that do other things, too.
        notice_s: the longest until a crash is noticed; hang_s: until a hang is.
    """

    name: str
    engine: Callable[[Environment, Path, Secret], Engine]
    package: str | None = None
    version: Callable[[Environment], str] | None = None
    requirements: Path | None = None
    prepare: Callable[[Environment], None] = _nothing
    make_model: Callable[[Environment, Path], None] = _no_model
    processes: Mapping[str, str] = field(default_factory=lambda: {LEADER: LEADER})
    hang: str = LEADER
    sleeps: tuple[Sleep, ...] | str = "it has no way to sleep"
    requests: tuple[Request, ...] = (CHAT,)
    tolerance: float = 0.0
    golden: Callable[[], tuple[Recorded, ...]] = lambda: (Golden(),)
    warmup: tuple[Step, ...] = (Text(),)
    liveness: tuple[Step, ...] = (Ping(),)
    contract: SnapshotContract = field(default_factory=SnapshotContract)
    lacks: Mapping[str, str] = field(default_factory=dict)
    start_s: float = 300.0
    notice_s: float = 10.0
    hang_s: float = 60.0

    def __post_init__(self) -> None:
        require(bool(self.name.strip()), "name", self.name, "not blank")
        require((self.package is None) != (self.version is None), "package", self.package, "given, or else `version`")
        for lack in self.lacks:
            require(lack.partition(":")[0] in CHECKS, "lacks", lack, f"`check` or `check: variant` of {CHECKS}")
        require(bool(self.processes), "processes", self.processes, "at least the leader")
        require(bool(self.requests), "requests", self.requests, "at least one request")

    def lack(self, check: str, variant: str = "") -> str | None:
        """Return what this platform lacks for a check, or None."""
        return self.lacks.get(f"{check}: {variant}") or self.lacks.get(check)


def recipes() -> tuple[Recipe, ...]:
    """Return every recipe below this folder, by name: each package whose module `recipe` offers `RECIPE`."""
    packages = pkgutil.iter_modules(engines.__path__, f"{engines.__name__}.")
    modules = [f"{package.name}.recipe" for package in packages if package.ispkg]
    found = [import_module(module).RECIPE for module in modules if find_spec(module)]
    return tuple(sorted(found, key=lambda recipe: recipe.name))


def named(names: list[str]) -> tuple[Recipe, ...]:
    """Return the recipes of these names, in this order; all when there are none. A `-` may stand for a blank.

    Raises:
        ProfileError: there is no such recipe.
    """
    known = {recipe.name.replace(" ", "-"): recipe for recipe in recipes()}
    wanted = [name.replace(" ", "-") for name in names]
    for name in wanted:
        require(name in known, "NAME", name, f"one of {', '.join(known)}")
    return tuple(known[name] for name in wanted or known)
