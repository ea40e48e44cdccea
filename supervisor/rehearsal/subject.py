"""What is rehearsed: the program for the sandbox, and what it gets of this machine."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from supervisor import events
from supervisor.child import Child
from supervisor.emitter import Emitter
from supervisor.lifecycle.run_steps import run_steps
from supervisor.profile import Profile
from supervisor.redact import GUESSED_MIN_CHARS, Redactor, Secret, is_secret_name
from supervisor.rehearsal.bundle import Mount
from supervisor.rehearsal.drift import Weight
from supervisor.rehearsal.image import found_in
from supervisor.rehearsal.report import is_golden
from supervisor.rehearsal.request import RehearsalRequest
from supervisor.steps import Hooks, Step

__all__ = ["EXCHANGE", "Subject", "is_guessed_secret", "of_profile", "prepared"]

EXCHANGE: Final = Path("/warmboot-exchange")
_TELLING_CHARS: Final = 12


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
            if is_guessed_secret(name, value)
            and value not in needed
            and len(value) >= _TELLING_CHARS
            and not value.isalpha()
        }
        return found_in(image, strange) if strange else ()


def prepared(profile: Profile, hooks: Hooks, request: RehearsalRequest) -> tuple[Profile, Hooks]:
    """The profile and hooks as a host that snapshots has them.

    Contract and golden answers are added unless they are there or were switched off; an answer about a picture where a
    picture is part of the warmup. A profile that never restarts may be replaced once at the resume.
    """
    from hooks.contract.step import SnapshotContract
    from hooks.golden.step import goldens
    from hooks.warmup import Image

    profile = replace(profile, weights=_files(profile))
    if profile.restart.policy == "never":
        profile = replace(profile, restart=replace(profile.restart, policy="on-resume", max_restarts=1))
    before = [step for step in hooks.before_seal if not _is_off(step, request)]
    after = [step for step in hooks.after_resume if not _is_off(step, request)]
    if request.golden and hooks.warmup and not any(map(is_golden, before)):
        pairs = goldens(mmproj=any(isinstance(step, Image) for step in hooks.warmup))
        before = [*before, *(golden.record for golden in pairs)]
        after = [*(golden.replay for golden in pairs), *after]
    if request.contract and not any(isinstance(step, SnapshotContract) for step in before):
        before = [*before, SnapshotContract()]
    return profile, replace(hooks, before_seal=tuple(before), after_resume=tuple(after))


def _is_off(step: Step, request: RehearsalRequest) -> bool:
    """Whether a Step is one that was switched off."""
    from hooks.contract.step import SnapshotContract

    off = not request.contract and isinstance(step, SnapshotContract)
    return off or (not request.golden and is_golden(step))


def of_profile(profile: Profile, hooks: Hooks, request: RehearsalRequest, *, argv: tuple[str, ...]) -> Subject:
    """A profile as the subject of a rehearsal.

    Args:
        profile, hooks: what is rehearsed.
        request: how.
        argv: a command that loads the same profile again and calls `inside` with it.
    """
    needed = {secret.reveal() for secret in profile.secrets}
    # As on a host that gives a container what it names and no more: secrets that the profile does not know stay here.
    env = {
        name: value
        for name, value in os.environ.items()
        if not is_guessed_secret(name, value)
        or value in needed
        or any(fnmatchcase(name, p) for p in profile.inherit_env)
    }

    async def before() -> None:
        # Outside, because what these write (a model that is assembled, say) belongs on the disk, not in the image.
        emit = Emitter(hooks.observers)
        child = Child(profile=profile, port=0, pid=None, redact=Redactor(profile.secrets), tell=emit.tell)
        emit(events.Starting(attempt=1))
        try:
            await run_steps("before_start", hooks.before_start, child, emit)
        finally:
            emit(events.Stopped())  # takes away what was made for a child: folders, files with keys

    return Subject(
        argv=argv,
        env=env,
        mounts=request.mounts,
        weights=tuple(Weight.at(path, request.mounts) for path in _files(profile)),
        key_variable=profile.api_key_env,
        secrets=profile.secrets,
        before=before,
    )


def _files(profile: Profile) -> tuple[Path, ...]:
    """The weights, all parts of split ones."""
    return tuple(part for path in profile.weights for part in profile.dialect.weight_files(path))


def is_guessed_secret(name: str, value: str) -> bool:
    """Whether a variable is a secret by its name, and long enough to be one."""
    return is_secret_name(name) and len(value.strip()) >= GUESSED_MIN_CHARS
