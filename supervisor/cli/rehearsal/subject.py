"""What is rehearsed: the program for the sandbox, and what it gets of this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from supervisor.cli.options import override, variables
from supervisor.cli.rehearsal.bundle import Mount
from supervisor.cli.rehearsal.drift import Weight
from supervisor.cli.rehearsal.image import found_in
from supervisor.cli.spec import load
from supervisor.contract import Child, Hooks
from supervisor.emitter import Emitter
from supervisor.errors import ProfileError
from supervisor.profile import Profile
from supervisor.redact import GUESSED_MIN_CHARS, Redactor, Secret, is_secret_name
from supervisor.steps import run_steps

__all__ = ["EXCHANGE", "Subject", "of_entry", "of_profile", "prepared"]

EXCHANGE: Final = Path("/run/warmboot-exchange")
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
        strange = {n: v.strip() for n, v in os.environ.items() if _secret(n, v) and v not in needed}
        return found_in(image, strange) if strange else ()


def prepared(profile: Profile, hooks: Hooks, given: dict[str, Any]) -> tuple[Profile, Hooks]:
    """The profile and hooks as a host that snapshots has them: contract and golden answer unless they are there."""
    from hooks.contract import SnapshotContract
    from hooks.golden import goldens

    if profile.restart.policy == "never":
        profile = replace(profile, restart=replace(profile.restart, policy="on-resume", max_restarts=1))
    before = [step for step in hooks.before_seal if not _is(step, given)]
    after = [step for step in hooks.after_resume if not _is(step, given)]
    if not given["no_golden"] and hooks.warmup and not any(step.name.startswith("golden") for step in before):
        pairs = goldens(mmproj="--mmproj" in profile.command)
        before = [*before, *(golden.record for golden in pairs)]
        after = [*(golden.replay for golden in pairs), *after]
    if not given["no_contract"] and not any(isinstance(step, SnapshotContract) for step in before):
        before = [*before, SnapshotContract()]
    return profile, replace(hooks, before_seal=tuple(before), after_resume=tuple(after))


def _is(step: Any, given: dict[str, Any]) -> bool:
    """Whether a Step is one that was switched off."""
    from hooks.contract import SnapshotContract

    off = given["no_contract"] and isinstance(step, SnapshotContract)
    return off or (given["no_golden"] and step.name.startswith("golden"))


def of_profile(spec: str, given: dict[str, Any]) -> Subject:
    profile, hooks = override(*load(spec), given)
    needed = {secret.reveal() for secret in profile.secrets}
    # As on a host that gives a container what it names and no more: secrets that the profile does not know stay here.
    env = {
        name: value
        for name, value in os.environ.items()
        if not _secret(name, value) or value in needed or profile.inherit_env == ("*",)
    }

    async def before() -> None:
        # Outside, because what these write (a model that is assembled, say) belongs on the disk, not in the image.
        child = Child(profile=profile, port=0, pid=None, redact=Redactor(profile.secrets))
        await run_steps("before_start", hooks.before_start, child, Emitter(()))

    return Subject(
        argv=(sys.executable, "-m", "supervisor", *sys.argv[1:], "--inside", str(EXCHANGE)),
        env=env,
        mounts=_mounts(given),
        weights=tuple(Weight.at(path) for path in profile.weights),
        key_variable=profile.api_key_env,
        secrets=profile.secrets,
        before=before,
    )


def of_entry(spec: str, given: dict[str, Any]) -> Subject:
    from modal_entry.rehearsal.entry import weights_of

    path = Path(spec).resolve()
    weights = weights_of(path)
    secrets = {_KEY: Secret(os.environ.get(_KEY, ""), name=_KEY), **variables(given["env"])}
    argv = [sys.executable, "-m", "supervisor.cli.rehearsal.modal_inside", str(path), "--exchange", str(EXCHANGE)]
    argv += [word for pair in given["env"] for word in ("--env", pair)]
    mounts = _mounts(given)
    return Subject(
        argv=tuple(argv),
        env={name: value for name, value in os.environ.items() if name == _KEY or not _secret(name, value)},
        mounts=mounts,
        weights=tuple(Weight(host=_behind(path, mounts), inside=path) for path in weights),
        key_variable=None,
        secrets=tuple(value for value in secrets.values() if isinstance(value, Secret) and value.reveal()),
    )


def _mounts(given: dict[str, Any]) -> tuple[Mount, ...]:
    found = []
    for text in given["mounts"]:
        source, _, target = text.rpartition(":")
        if not source or not target.startswith("/") or not Path(source).is_dir():
            raise ProfileError(
                field="--mount", value=text, allowed="FOLDER:PATH, a folder of this machine and an absolute path"
            )
        found.append(Mount(source=Path(source).resolve(), target=Path(target)))
    return tuple(found)


def _behind(path: Path, mounts: tuple[Mount, ...]) -> Path:
    """Where a path of the sandbox lies on the host."""
    for mount in mounts:
        with suppress(ValueError):
            return mount.source / path.relative_to(mount.target)
    return path


def _secret(name: str, value: str) -> bool:
    return is_secret_name(name) and len(value.strip()) >= GUESSED_MIN_CHARS
