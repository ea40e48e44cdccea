"""What a deploy fixes: the build and the weights that the containers of a deployed server use, and no others.

`modal deploy` skips a deploy whose definitions are those of the last one, and a promotion or a download changes only
files on volumes. So the identity of both goes into the server's definition, as variables of its image: a deploy after a
switch differs, gets new snapshots, and containers that Modal starts later find in their environment what they must use,
whatever the pointer says by then.
"""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final, Self

import modal

from modal_entry.serving import volumes
from modal_entry.serving.volumes import BUILDS_NAME, MODELS_NAME, volumes_environment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from modal_entry.pipeline.manifest import BuildId
    from modal_entry.serving.deployment import Deployment

__all__ = ["Pinned", "environment", "local_build", "variables"]

_BUILD: Final = "WARMBOOT_BUILD"
_WEIGHTS: Final = "WARMBOOT_WEIGHTS"
_PROMOTED: Final = "WARMBOOT_PROMOTED"
_DEPLOYING: Final = ("deploy", "serve")  # commands of Modal's CLI that start servers


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """The build and the weights of one deploy.

    Attributes:
        build: the build's folder and hash.
        commit: of the weights' repository.
        weights_sha256: of the weights' files, see `Marker.content_sha256`.
        promoted: when the build was promoted; so that a deploy after any promotion makes new snapshots.
    """

    build: BuildId
    commit: str
    weights_sha256: str
    promoted: str = ""

    def variables(self) -> dict[str, str]:
        """As variables of the image."""
        return {
            _BUILD: f"{self.build.folder}@{self.build.sha256}",
            _WEIGHTS: f"{self.commit}@{self.weights_sha256}",
            _PROMOTED: self.promoted,
        }

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """What the container was deployed with.

        Raises:
            ProfileError: the variables are not there: the deploy was not made with Modal's CLI.
        """
        from modal_entry.pipeline.manifest import BuildId
        from supervisor.errors import ProfileError

        pairs = {}
        for name in (_BUILD, _WEIGHTS):
            left, at, sha256 = environ.get(name, "").partition("@")
            if not (left and at and sha256):
                allowed = "NAME@SHA256, which `modal deploy` sets. Deploy with that command, and not from Python"
                raise ProfileError(field=name, value=environ.get(name, ""), allowed=allowed)
            pairs[name] = left, sha256
        folder, build_sha256 = pairs[_BUILD]
        commit, weights_sha256 = pairs[_WEIGHTS]
        build = BuildId(folder=folder, sha256=build_sha256)
        return cls(build=build, commit=commit, weights_sha256=weights_sha256)

    def check_volumes(self, deployment: Deployment) -> Path:
        """The folder of the deployed build, once build and weights on the volumes are those of the deploy.

        Raises:
            NotAsDeployed: one of them is missing or another one.
        """
        from hooks.artifacts.marker import Marker, MarkerError
        from modal_entry.pipeline.manifest import BuildId
        from modal_entry.serving.errors import NotAsDeployed

        folder = volumes.BUILDS / self.build.folder
        try:
            seen = BuildId.of(folder).sha256
        except OSError as error:
            seen = f"unreadable: {error.strerror or error}"
        if seen != self.build.sha256:
            raise NotAsDeployed(what="build", path=str(folder), deployed=self.build.sha256, seen=seen)
        try:
            marker = Marker.load(deployment.folder)
            seen = marker.content_sha256 if marker else "no marker: nothing was downloaded, or half of it"
        except MarkerError as error:
            seen = str(error)
        if seen != self.weights_sha256:
            raise NotAsDeployed(what="weights", path=str(deployment.folder), deployed=self.weights_sha256, seen=seen)
        return folder


def environment() -> str:
    """The name of the Modal environment of this command or container."""
    name = os.environ.get("MODAL_ENVIRONMENT") or modal.Environment.from_context().hydrate().name
    return name or "main"


def variables(deployment: Deployment) -> dict[str, str]:
    """The variables that fix build and weights, for the server's image; blank ones where nothing is deployed.

    Under `modal deploy` they are looked up on the volumes; what is missing ends the command, with the command to run.
    """
    if modal.is_local() and _command() in _DEPLOYING:
        return _look_up(deployment).variables()
    return {name: os.environ.get(name, "") for name in (_BUILD, _WEIGHTS, _PROMOTED)}


def local_build(folder: Path) -> Path:
    """A copy of a build on the container's own disk, whole; made anew when it is missing or damaged.

    A snapshot may not hold a file of a volume open, and a running binary is one.

    Raises:
        NotAsDeployed: the copy is not whole, so the build on the volume is not either.
        OSError: the disk is full, or the volume failed.
    """
    from modal_entry.pipeline.manifest import check_build
    from modal_entry.serving.errors import NotAsDeployed

    copy = Path.home() / ".warmboot" / folder.name
    if not copy.is_dir() or check_build(copy):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        if faults := check_build(copy):
            seen = "; ".join(map(str, faults))
            raise NotAsDeployed(what="build", path=str(folder), deployed="a whole one", seen=seen)
    return copy


def _command() -> str | None:
    """The command of Modal's CLI that imports the entry; None: something else imports it."""
    import click

    context = click.get_current_context(silent=True)
    return context.info_name if context else None


def _look_up(deployment: Deployment) -> Pinned:
    from hooks.artifacts.marker import MARKER, Marker, MarkerError
    from modal_entry.pipeline.releases import NoRelease, Release, pointer_path

    where = environment()
    pointer = pointer_path(where, deployment.app)
    marker_path = PurePosixPath(deployment.name, deployment.revision, MARKER)
    release = _read(BUILDS_NAME, pointer)
    if release is None:
        sys.exit(
            f"{deployment.app}: no build was promoted in the environment {where!r} (there is no {pointer} on the "
            f"volume {BUILDS_NAME}). Run `{_run('build_llama_server')}` first, or `{_run('promote')}` for a build that "
            "is there."
        )
    content = _read(MODELS_NAME, marker_path)
    if content is None:
        sys.exit(
            f"{deployment.app}: the weights were not downloaded (there is no {marker_path} on the volume "
            f"{MODELS_NAME}). Run `{_run('download_model')}` first."
        )
    try:
        current = Release.parse(release, str(pointer))
        marker = Marker.parse(content, Path(marker_path))
    except (NoRelease, MarkerError) as error:
        sys.exit(f"{deployment.app}: {error}")
    return Pinned(
        build=current.current,
        commit=marker.commit or marker.revision,
        weights_sha256=marker.content_sha256,
        promoted=current.since,
    )


def _run(name: str) -> str:
    """The command that runs a function of the entry, as the user would type it."""
    import click

    given = click.get_current_context().params
    env = f"--env {given['env']} " if given.get("env") else ""
    return f"modal run {env}{given.get('app_ref', 'ENTRY.py')}::{name}"


def _read(name: str, path: PurePosixPath) -> bytes | None:
    """A small file of a volume, from outside a container; None when there is none."""
    volume = modal.Volume.from_name(name, environment_name=volumes_environment())
    try:
        return b"".join(volume.read_file(str(path)))
    except (FileNotFoundError, modal.exception.NotFoundError):
        return None
