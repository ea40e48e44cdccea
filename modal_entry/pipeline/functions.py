"""The steps that fill the volumes and look at them, as the entries' functions call them inside a container.

What they do is in `build`, `download`, `inspection` and `releases`, which know nothing of Modal. All of them may be run
again at any time; what is done already is found and left alone.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import modal

from modal_entry.serving import volumes
from modal_entry.serving.pinned import environment
from modal_entry.serving.volumes import builds_volume, models_volume

if TYPE_CHECKING:
    from hooks.smoke.report import SmokeReport
    from modal_entry.pipeline.releases import Releases
    from modal_entry.serving.deployment import Deployment

_PROGRESS_S = 15.0


def build_llama_server(deployment: Deployment) -> None:
    """Compiles the tag for the deployment's GPU, and promotes it if the app has no build yet."""
    from modal_entry.pipeline.build import build
    from modal_entry.pipeline.cmake import architecture

    builds_volume.reload()
    releases = _releases(deployment)
    done = build(
        deployment.tag,
        root=volumes.BUILDS,
        cuda_arch=architecture(deployment.gpu),
        on_commit=builds_volume.commit,
    )
    print(done)
    if releases.current() is None:
        print(releases.promote(done.folder.name))


def download_model(deployment: Deployment) -> None:
    """Brings the model's files to the volume, whole, with a marker written last."""
    from modal_entry.pipeline.download import download
    from supervisor import Secret

    models_volume.reload()
    token = Secret(os.environ.get("HF_TOKEN", ""), name="HF_TOKEN")
    done = download(
        deployment.repo,
        deployment.artifacts,
        deployment.revision,
        deployment.folder,
        token=token,
        on_commit=models_volume.commit,
    )
    print(done)
    if done.marker.commit != deployment.revision:
        print(f'To pin it, write revision="{done.marker.commit}" into the entry, and download again.')


def inspect_volumes(deployment: Deployment) -> int:
    """Prints every artifact and the promoted build with a verdict; returns the exit status, 1 on any doubt."""
    from modal_entry.pipeline import inspection
    from modal_entry.pipeline.cmake import architecture

    models_volume.reload()
    builds_volume.reload()
    release = _releases(deployment).current()
    return inspection.inspect_volumes(
        deployment.folder,
        deployment.artifacts,
        build=volumes.BUILDS / (release.current.folder if release else deployment.build_folder(deployment.tag)),
        architecture=architecture(deployment.gpu),
        repo=deployment.repo,
        revision=deployment.revision,
    )


def promote(deployment: Deployment, tag: str) -> None:
    """Points the app to the build of a tag, for the next deploy; a blank tag means `Deployment.tag`."""
    builds_volume.reload()
    print(_releases(deployment).promote(deployment.build_folder(tag or deployment.tag)))


def rollback(deployment: Deployment) -> None:
    """Points the app to the build before, for the next deploy."""
    builds_volume.reload()
    print(_releases(deployment).rollback())


def _releases(deployment: Deployment) -> Releases:
    from modal_entry.pipeline.releases import Releases

    return Releases(root=volumes.BUILDS, environment=environment(), app=deployment.app, on_commit=builds_volume.commit)


def url_of(app: modal.App, server: str) -> str:
    """Where a deployed server answers.

    Raises:
        ProfileError: it is not deployed, or has no URL yet.
    """
    from supervisor.errors import ProfileError

    url = modal.Server.from_name(app.name or "", server).get_url()
    if not url:
        raise ProfileError(
            field="url", value=url, allowed=f"that of a deployed server: run modal deploy for {app.name}"
        )
    return url


def smoke(deployment: Deployment, url: str, *, idle_then_wake_s: float) -> None:
    """Checks the deployed endpoint from here, with the local environment's `API_KEY`; exits with 4 on any failure."""
    import anyio
    from rich.console import Console

    from hooks.http.endpoint import Endpoint
    from hooks.smoke.run import Options
    from hooks.smoke.run import smoke as check
    from supervisor import Secret
    from supervisor.engines.llama_cpp import LLAMA_CPP

    if not deployment.unauthenticated:
        sys.exit("smoke sends no Modal-Key and Modal-Secret, which the sheet asks for with unauthenticated=False")
    if not os.environ.get("API_KEY", "").strip():
        sys.exit(f"export API_KEY first: the key that the secret {deployment.api_key_secret} holds")
    key = Secret(os.environ["API_KEY"], name="API_KEY")
    endpoint = Endpoint(url=url, api_key=key, model=deployment.name, dialect=LLAMA_CPP)
    options = Options(
        skip=() if deployment.mmproj else ("image",),
        must=tuple(name for name in ("thinking", "image") if name in deployment.warmups),  # its sheet says that it can
        slots=deployment.slots,
        deadline_s=deployment.startup_timeout_s,
        idle_s=idle_then_wake_s or None,
    )
    console = Console()
    running = ["wait"]

    async def main() -> SmokeReport:
        async with anyio.create_task_group() as group:
            group.start_soon(progress)
            report = await check(endpoint, options, on_start=running.append)
            console.print(report.table())
            group.cancel_scope.cancel()
        return report

    async def progress() -> None:
        began = anyio.current_time()
        while True:
            name = "waiting; at zero it answers 503 until a container is up" if running[-1] == "wait" else running[-1]
            console.print(f"{anyio.current_time() - began:4.0f} s: {name}", style="dim")
            await anyio.sleep(_PROGRESS_S)

    sys.exit(0 if anyio.run(main).ok else 4)
