"""The environment of one engine below `build/engines/<name>`: installed once, until its recipe changes."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from engines.recipe import Lacking, Recipe

__all__ = ["BUILD", "Environment", "InstallFailed", "build", "clean"]

BUILD: Final = Path(__file__).resolve().parents[2] / "build" / "engines"
_SHOWN: Final = 25  # lines of the log that a failure shows
# What would change which modules an engine finds, or make every start compile them anew.
_OURS: Final = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "PYTHONSTARTUP", "VIRTUAL_ENV")


class InstallFailed(Exception):
    """A command of the install failed; the message holds the end of its log."""


def clean(environ: Mapping[str, str]) -> dict[str, str]:
    """Return these variables without those that are ours."""
    return {name: value for name, value in environ.items() if name not in _OURS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """Where an engine is installed.

    Attributes:
        name: the recipe's.
        folder: everything of this engine: the environment (`venv`), the model, logs; a recipe may put more into it.
        python: the interpreter; ours when the recipe has no requirements.
        log: what commands of the install wrote.
        uv: installs in a tenth of pip's time; None: pip does it.
    """

    name: str
    folder: Path
    python: Path
    log: Path
    uv: Path | None = None

    @property
    def model(self) -> Path:
        """The folder of the model."""
        return self.folder / "model"

    @property
    def site_packages(self) -> Path:
        """Where modules are installed, for stubs."""
        return Path(self.output(self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())

    @property
    def _pip(self) -> tuple[str | Path, ...]:
        return (self.python, "-m", "pip", "--disable-pip-version-check", "--no-input")

    def program(self, name: str) -> Path:
        """A console script of the environment."""
        return self.python.parent / name

    def install(self, *arguments: str | Path) -> None:
        """Run `pip install ARGUMENTS` here, by uv where it can be had; wheels that pip would find, uv finds, too."""
        pip = (self.uv, "pip", "install", "--python", self.python) if self.uv else (*self._pip, "install")
        links = os.environ.get("PIP_FIND_LINKS", "").split()
        self.run(*pip, *arguments, env={"UV_FIND_LINKS": ",".join(links)} if links else None)

    def uninstall(self, *names: str) -> None:
        """Remove distributions; those that are not there are none's concern."""
        pip = (self.uv, "pip", "uninstall", "--python", self.python) if self.uv else (*self._pip, "uninstall", "-y")
        self.run(*pip, *names)

    def run(self, *argv: str | Path, env: Mapping[str, str] | None = None) -> None:
        """Run a command; what it writes goes into the log.

        Raises:
            InstallFailed: it exited with another code than 0.
        """
        with self.log.open("ab") as log:
            log.write(f"$ {' '.join(map(str, argv))}\n".encode())
            log.flush()
            done = subprocess.run(
                list(map(str, argv)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**clean(os.environ), **(env or {})},
                check=False,
            )
        if done.returncode:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_SHOWN:]
            raise InstallFailed("\n    ".join([f"exit code {done.returncode}; the end of {self.log}:", *lines]))

    def output(self, *argv: str | Path) -> str:
        """Return what a command writes to stdout; raises CalledProcessError."""
        command = list(map(str, argv))
        return subprocess.run(command, env=clean(os.environ), check=True, capture_output=True, text=True).stdout

    def version_of(self, distribution: str) -> str:
        """Return the version of an installed distribution."""
        program = f"from importlib.metadata import version; print(version({distribution!r}))"
        return self.output(self.python, "-c", program).strip()


def build(recipe: Recipe, say: Callable[[str], None], folder: Path = BUILD) -> Environment:
    """Return the recipe's environment with its model, made now unless the one that is there is of this very recipe.

    Raises:
        InstallFailed: a command failed.
        Lacking: the recipe found that the platform lacks something.
    """
    here = folder / recipe.name.replace(" ", "-")
    own = recipe.requirements is not None
    python = here / "venv" / "bin" / "python" if own else Path(sys.executable)
    env = Environment(name=recipe.name, folder=here, python=python, log=here / "install.log")
    stamp, wanted = here / ".stamp", _stamp(recipe)
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted and python.exists():
        return env
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir(parents=True)
    if recipe.requirements is not None:
        with _Told(say, f"installing {recipe.requirements.parent.name}/{recipe.requirements.name}", env.log):
            env = replace(env, uv=_uv(env, folder / ".tools"))
            _make_venv(env)
            env.install("-r", recipe.requirements)
    with _Told(say, "preparing", env.log):
        recipe.prepare(env)
    env.model.mkdir()
    with _Told(say, "making the model", env.log):
        recipe.make_model(env, env.model)
    stamp.write_text(wanted, encoding="utf-8")
    return env


class _Told:
    """Says what begins, and how long it took."""

    def __init__(self, say: Callable[[str], None], what: str, log: Path) -> None:
        self._say, self._what, self._log = say, what, log

    def __enter__(self) -> None:
        self._began = time.monotonic()
        self._say(f"{self._what} (log: {self._log})")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        end = "" if kind is None else "lacking" if kind is Lacking else "failed"
        if end or time.monotonic() - self._began > 1:
            self._say(f"{self._what}: {end or 'done'} after {time.monotonic() - self._began:.0f} s")


def _make_venv(env: Environment) -> None:
    folder = env.folder / "venv"
    if env.uv:
        env.run(env.uv, "venv", "--python", sys.executable, folder)
    else:
        env.run(sys.executable, "-m", "venv", folder)


def _uv(env: Environment, tools: Path) -> Path | None:
    """The program, from the path or from a folder of its own; None when it cannot be had."""
    if found := shutil.which("uv"):
        return Path(found)
    own = tools / "bin" / "uv"
    if not own.exists():
        with contextlib.suppress(InstallFailed):
            env.run(sys.executable, "-m", "pip", "install", "--quiet", "--target", tools, "uv")
    return own if own.exists() else None


def _stamp(recipe: Recipe) -> str:
    """A hash of the interpreter, and of every file of the recipe's folder; without requirements, of its module."""
    digest = hashlib.sha256(sys.version.encode())
    module = Path(inspect.getfile(recipe.engine))
    files = sorted(recipe.requirements.parent.rglob("*")) if recipe.requirements else [module]
    for path in files:
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()
