"""The steps that fill the volumes and look at them, as the entries' functions call them inside a container.

Thin on purpose: what they do is in `build`, `download`, `verify` and `releases`, which know nothing of Modal. All of
them may be run again at any time; what is done already is found and left alone.
"""

from __future__ import annotations

import os
import sys

import modal

from modal_entry.serving import server as serving
from modal_entry.serving.server import Model, builds_volume, models_volume


def build_llama_server(model: Model) -> None:
    """Compiles the tag for the model's GPU, and promotes it if nothing was ever promoted.

    `LLAMA_CPP_TAG` of the image wins over the sheet, which is read anew in the container without that variable.
    """
    from modal_entry.pipeline.build import build
    from modal_entry.pipeline.cmake import architecture
    from modal_entry.pipeline.releases import current, promote

    builds_volume.reload()
    tag = os.environ.get("LLAMA_CPP_TAG", model.llama_cpp_tag)
    print(build(tag, root=serving.BUILDS, cuda_arch=architecture(model.gpu), on_commit=builds_volume.commit))
    if current(serving.BUILDS) is None:
        print(promote(serving.BUILDS, tag, on_commit=builds_volume.commit))


def download_model(model: Model) -> None:
    """Brings the model's files to the volume, whole, with a marker written last."""
    from modal_entry.pipeline.download import download
    from supervisor import Secret

    models_volume.reload()
    token = Secret(os.environ.get("HF_TOKEN", ""), name="HF_TOKEN")
    print(
        download(model.repo, model.artifacts, model.revision, model.folder, token=token, on_commit=models_volume.commit)
    )


def verify_model(model: Model) -> None:
    """Prints every artifact and the promoted build with a verdict; exits with 1 on any doubt."""
    from modal_entry.pipeline import verify
    from modal_entry.pipeline.releases import resolve

    models_volume.reload()
    builds_volume.reload()
    doubts = verify.verify_model(
        model.folder, model.artifacts, build=resolve(serving.BUILDS), repo=model.repo, revision=model.revision
    )
    if doubts:
        raise SystemExit(doubts)


def promote(tag: str) -> None:
    """Serves the build of a tag from the next deploy on."""
    from modal_entry.pipeline import releases

    builds_volume.reload()
    print(releases.promote(serving.BUILDS, tag, on_commit=builds_volume.commit))


def rollback() -> None:
    """Serves the previous build again from the next deploy on."""
    from modal_entry.pipeline import releases

    builds_volume.reload()
    print(releases.rollback(serving.BUILDS, on_commit=builds_volume.commit))


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


def smoke(model: Model, url: str, *, idle_then_wake_s: float) -> None:
    """Checks the deployed endpoint from here, with the local environment's `API_KEY`; exits with 4 on any failure."""
    import anyio
    from rich.console import Console

    from hooks.http.endpoint import Endpoint
    from hooks.smoke.run import Options
    from hooks.smoke.run import smoke as check
    from supervisor import Secret
    from supervisor.engines.llama_cpp import LLAMA_CPP

    key = Secret(os.environ.get("API_KEY", ""), name="API_KEY")
    endpoint = Endpoint(url=url, api_key=key, model=model.name, dialect=LLAMA_CPP)
    options = Options(
        skip=() if model.mmproj else ("image",),
        must=tuple(name for name in ("thinking", "image") if name in model.warmups),  # its sheet says that it can
        slots=model.slots,
        deadline_s=2 * model.start_s,
        idle_s=idle_then_wake_s or None,
    )
    report = anyio.run(check, endpoint, options)
    Console().print(report.table())
    sys.exit(0 if report.ok else 4)
