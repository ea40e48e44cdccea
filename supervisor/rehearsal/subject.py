"""What is rehearsed: the program for the sandbox, and what it gets of this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from supervisor.child import Child
from supervisor.cli.options import override, variables
from supervisor.cli.spec import load
from supervisor.emitter import Emitter
from supervisor.errors import require
from supervisor.lifecycle.run_steps import run_steps
from supervisor.profile import Profile
from supervisor.redact import GUESSED_MIN_CHARS, Redactor, Secret, is_secret_name
from supervisor.rehearsal.bundle import Mount
from supervisor.rehearsal.drift import Weight
from supervisor.rehearsal.image import found_in
from supervisor.rehearsal.report import is_golden
from supervisor.steps import Hooks, Step

__all__ = ["EXCHANGE", "Subject", "of_entry", "of_profile", "prepared"]

EXCHANGE: Final = Path("/warmboot-exchange")
_TAKEN: Final = ("/", "/proc", "/dev", "/sys")
_TELLING_CHARS: Final = 12
_KEY: Final = "API_KEY"  # what every entry's secret holds


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What goes into the sandbox."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    mounts: tuple[Mount, ...]
    weights: tuple[Weight, ...]
    key_variable: str | None
    secrets: tuple[Secret, ...]
    before: Callable[[], Awaitable[None]] | None = None

    def strays(self, image: Path) -> tuple[str, ...]:
        """Variables here whose secret values are in the image, though the server needs none of them. Blocks."""
        needed = {secret.reveal() for secret in self.secrets}
        # A short one, or a plain word, is in every image.
        strange = {
            name: value.strip()
            for name, value in os.environ.items()
            if _secret(name, value) and value not in needed and len(value) >= _TELLING_CHARS and not value.isalpha()
        }
        return found_in(image, strange) if strange else ()


def prepared(profile: Profile, hooks: Hooks, given: dict[str, Any]) -> tuple[Profile, Hooks]:
    """The profile and hooks as a host that snapshots has them: contract and golden answer unless they are there."""
    from hooks.contract.step import SnapshotContract
    from hooks.golden.step import goldens

    profile = replace(profile, weights=_files(profile))
    if profile.restart.policy == "never":
        profile = replace(profile, restart=replace(profile.restart, policy="on-resume", max_restarts=1))
    before = [step for step in hooks.before_seal if not _is_off(step, given)]
    after = [step for step in hooks.after_resume if not _is_off(step, given)]
    if not given["no_golden"] and hooks.warmup and not any(map(is_golden, before)):
        pairs = goldens(mmproj="--mmproj" in profile.command)
        before = [*before, *(golden.record for golden in pairs)]
        after = [*(golden.replay for golden in pairs), *after]
    if not given["no_contract"] and not any(isinstance(step, SnapshotContract) for step in before):
        before = [*before, SnapshotContract()]
    return profile, replace(hooks, before_seal=tuple(before), after_resume=tuple(after))


def _is_off(step: Step, given: dict[str, Any]) -> bool:
    """Whether a Step is one that was switched off."""
    from hooks.contract.step import SnapshotContract

    off = given["no_contract"] and isinstance(step, SnapshotContract)
    return off or (given["no_golden"] and is_golden(step))


def of_profile(spec: str, given: dict[str, Any]) -> Subject:
    profile, hooks = override(*load(spec), given)
    mounts = _mounts(given)
    needed = {secret.reveal() for secret in profile.secrets}
    # As on a host that gives a container what it names and no more: secrets that the profile does not know stay here.
    env = {
        name: value
        for name, value in os.environ.items()
        if not _secret(name, value) or value in needed or any(fnmatchcase(name, p) for p in profile.inherit_env)
    }

    async def before() -> None:
        # Outside, because what these write (a model that is assembled, say) belongs on the disk, not in the image.
        child = Child(profile=profile, port=0, pid=None, redact=Redactor(profile.secrets))
        await run_steps("before_start", hooks.before_start, child, Emitter(()))

    return Subject(
        argv=(sys.executable, "-m", "supervisor", *_without_json(sys.argv[1:]), "--inside", str(EXCHANGE)),
        env=env,
        mounts=mounts,
        weights=tuple(Weight.at(path, mounts) for path in _files(profile)),
        key_variable=profile.api_key_env,
        secrets=profile.secrets,
        before=before,
    )


def of_entry(spec: str, given: dict[str, Any]) -> Subject:
    from modal_entry.rehearsal.entry import weights_of
    from modal_entry.serving.server import BUILDS

    meant = ("env", "drift", "suspend_s", "mounts", "log_format")  # the sheet decides the rest
    for name, value in given.items():
        option = f"--{name.replace('_', '-')}"
        require(name in meant or not value, option, value, "left out: a Modal entry is rehearsed as its sheet says")
    entry = Path(spec).resolve()
    weights = weights_of(entry)
    given_env = variables(given["env"])
    secrets = [value for value in given_env.values() if isinstance(value, Secret)]
    if _KEY not in given_env and os.environ.get(_KEY, "").strip():
        secrets.append(Secret(os.environ[_KEY], name=_KEY))
    argv = [sys.executable, "-m", "modal_entry.rehearsal.inside", str(entry), "--exchange", str(EXCHANGE)]
    argv += [word for pair in given["env"] for word in ("--env", pair)]
    mounts = _mounts(given)
    found = {path: Weight.at(path, mounts) for path in (*weights, BUILDS)}
    for path, weight in found.items():
        allowed = f"FOLDER:PATH so that the entry finds {path}, as its volume has it"
        require(weight.host.exists(), "--mount", "nothing", allowed)
    return Subject(
        argv=tuple(argv),
        env={name: value for name, value in os.environ.items() if name == _KEY or not _secret(name, value)},
        mounts=mounts,
        weights=tuple(found[path] for path in weights),
        key_variable=None,
        secrets=tuple(secrets),
    )


def _files(profile: Profile) -> tuple[Path, ...]:
    """The weights, all parts of split ones."""
    return tuple(part for path in profile.weights for part in profile.dialect.weight_files(path))


def _mounts(given: dict[str, Any]) -> tuple[Mount, ...]:
    found: list[Mount] = []
    for text in given["mounts"]:
        source, _, target = text.rpartition(":")
        require(bool(source) and target.startswith("/"), "--mount", text, "FOLDER:PATH with an absolute PATH")
        require(
            Path(source).is_dir(), "--mount", text, f"FOLDER:PATH with a folder that exists here, as {source} does not"
        )
        path = Path(os.path.normpath(target))
        require(str(path) not in _TAKEN, "--mount", text, f"FOLDER:PATH with a PATH that is none of {' '.join(_TAKEN)}")
        require(path not in [mount.target for mount in found], "--mount", text, "the only one at its PATH")
        found.append(Mount(source=Path(source).resolve(), target=path))
    return tuple(found)


def _without_json(argv: Sequence[str]) -> list[str]:
    """The command line without `--json FILE`, which the command outside writes."""
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--json":
            next(words, None)
        elif not word.startswith("--json="):
            kept.append(word)
    return kept


def _secret(name: str, value: str) -> bool:
    return is_secret_name(name) and len(value.strip()) >= GUESSED_MIN_CHARS
