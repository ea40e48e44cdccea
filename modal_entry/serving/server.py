"""What every entry shares: the spec sheet's type, images, volumes, options, and the server's three lifecycle methods.

Read by Modal at every deploy and at every container start, so nothing heavy is imported at the top, and nothing at all
is fetched. Lifecycle methods are synchronous: Modal runs each async one under its own `run_until_complete` and parks
the loop in between, so the supervision lives on a `Daemon`'s thread.

Over 250 lines because an entry is understood from this one place.
"""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import modal

if TYPE_CHECKING:
    from collections.abc import Callable

    from hooks.artifacts.step import Artifact
    from hooks.contract.findings import Finding
    from supervisor import Daemon, Hooks, Profile, Secret
    from supervisor.logs.sink import Sink
    from supervisor.steps import Step

PORT: Final = 8000
MODELS: Final = Path("/models")
BUILDS: Final = Path("/llama-build")

# Builder and runtime move together, and with the driver: a snapshot does not survive a change of either.
_CUDA: Final = "12.8.1"
_OS: Final = "ubuntu24.04"
_PYTHON: Final = "3.12"
_SOURCES: Final = ("modal_entry", "hooks", "supervisor")
_SERVING: Final = ("anyio==4.16.0", "httpx==0.28.1", "regex==2026.11.15", "structlog==26.1.0", "tenacity==9.2.1")
_PIPELINE: Final = (*_SERVING, "huggingface-hub[hf_xet]==2.4.0", "rich==15.0.0")
_EXIT_CODE: Final = 1  # of a container whose server crashed: Modal replaces it
_ANSWER_S: Final = 30.0  # for a golden answer: one that hangs after a restore must not use up the startup timeout
_WARMUP_S: Final = 120.0  # for all warmup Steps and the auth check together


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The spec sheet of one served GGUF.

    Attributes:
        name: what clients call the model, and the name of its folder below `/models`.
        repo, revision: where the files come from.
        weights, mmproj: file names in the repository; None: no vision.
        llama_cpp_tag: the build to compile. What is served is the build that was promoted last.
        gpu: Modal's name of the GPU.
        ctx_size: tokens in all, shared by the slots.
        slots: requests served at once; also Modal's target concurrency.
        cache_type_k, cache_type_v: types of the KV cache.
        template: a chat template among the build's files, which replaces the model's own; None: the model's own.
        warmups: paths to run before the snapshot: text, thinking, image, tools.
        api_key_secret: the Modal Secret that holds `API_KEY`; hf_secret: the one that holds `HF_TOKEN`.
        min_containers, max_containers, scaledown_window_s: Modal's scaling.
        start_s, grace_s: limits of the load and of the stop, seconds.
    """

    name: str
    repo: str
    revision: str = "main"
    weights: str
    mmproj: str | None = None
    llama_cpp_tag: str
    gpu: str
    ctx_size: int
    slots: int
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    template: str | None = None
    warmups: tuple[str, ...] = ("text",)
    api_key_secret: str
    hf_secret: str = "huggingface-secret"  # noqa: S105  a name
    min_containers: int = 0
    max_containers: int = 3
    scaledown_window_s: int = 900
    start_s: float = 600.0
    grace_s: float = 20.0

    @property
    def folder(self) -> Path:
        """Where the files lie in a container."""
        return MODELS / self.name

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """All files, as the download and the checks see them."""
        from hooks.artifacts.step import Artifact

        return tuple(Artifact(path=name) for name in (self.weights, self.mmproj) if name)

    def profile(self, build: Path, api_key: Secret) -> Profile:
        """The supervised server, from a build's folder.

        Raises:
            ProfileError: a setting is wrong, or the build lacks a flag that one needs.
        """
        from supervisor import Liveness, Restart, Stop, Timeouts
        from supervisor.engines.llama_cpp import LlamaServer

        return LlamaServer(
            binary=build / "llama-server",
            model=self.folder / self.weights,
            mmproj=self.folder / self.mmproj if self.mmproj else None,
            alias=self.name,
            host="0.0.0.0",  # noqa: S104  Modal's proxy reaches the container from outside; the key guards it
            port=PORT,
            ctx_size=self.ctx_size,
            slots=self.slots,
            gpu_layers=999,  # all of them
            cache_type_k=self.cache_type_k,
            cache_type_v=self.cache_type_v,
            flash_attn="on",  # a quantised V cache needs it
            chat_template_file=build / self.template if self.template else None,
            api_key=api_key,
            timeouts=Timeouts(start_s=self.start_s, step_s=_WARMUP_S),
            stop=Stop(grace_s=self.grace_s),
            restart=Restart(policy="on-resume", max_restarts=1, host_exit_code=_EXIT_CODE),
            liveness=Liveness(armed="resume"),
        ).profile()

    def steps(self) -> tuple[Step, ...]:
        """The warmups, then the proof that strangers are refused."""
        from hooks.auth import AuthCheck
        from hooks.warmup.steps import parse

        return (*map(parse, self.warmups), AuthCheck())

    def hooks(self, on_findings: Callable[[tuple[Finding, ...]], None] | None = None) -> Hooks:
        """Artifacts verified before the start; warm and closed before the snapshot; a tiny inference as liveness.

        Before the seal golden answers are recorded and the snapshot contract is checked; after a restore those answers
        must come back.

        Args:
            on_findings: is given what the contract finds.
        """
        from hooks.artifacts.step import ArtifactsPresent
        from hooks.contract.step import SnapshotContract
        from hooks.golden.step import goldens
        from hooks.warmup.steps import Ping
        from supervisor import Hooks

        present = ArtifactsPresent(root=self.folder, artifacts=self.artifacts, repo=self.repo, revision=self.revision)
        # Mapped binaries and libraries of a build are fine: a build is never changed in its place.
        contract = SnapshotContract(
            remounted=(MODELS, BUILDS), allowed=(f"{BUILDS}/*/llama-server", f"{BUILDS}/*.so*"), on_findings=on_findings
        )
        golden = [replace(answer, deadline_s=_ANSWER_S) for answer in goldens(mmproj=self.mmproj is not None)]
        return Hooks(
            before_start=(present,),
            warmup=self.steps(),
            # Before the recording too: an answer that is given beside leftover requests may not come back the same.
            before_seal=(contract, *(answer.record for answer in golden), contract),
            after_resume=tuple(answer.replay for answer in golden),
            liveness=(Ping(),),
        )


# Created once and for all: a container counts these objects and wants as many as the deploy had.
models_volume = modal.Volume.from_name("llama-models", create_if_missing=True)
builds_volume = modal.Volume.from_name("llama-cpp-builds", create_if_missing=True)


def _image(flavour: str, *packages: str) -> modal.Image:
    return modal.Image.from_registry(f"nvidia/cuda:{_CUDA}-{flavour}-{_OS}", add_python=_PYTHON).apt_install(*packages)


def _with_sources(image: modal.Image) -> modal.Image:
    # Last in the chain: sources are mounted, so that a change of ours rebuilds no image.
    return image.add_local_python_source(*_SOURCES)


def server(model: Model) -> dict[str, Any]:
    """Options of `@app.server` for a model."""
    image = _image("runtime", "libgomp1").pip_install(*_SERVING).env({"HF_HUB_OFFLINE": "1"})
    return {
        "image": _with_sources(image),
        "gpu": model.gpu,
        "volumes": {str(MODELS): models_volume, str(BUILDS): builds_volume},
        "secrets": [modal.Secret.from_name(model.api_key_secret, required_keys=["API_KEY"])],
        "port": PORT,
        # llama-server asks for the key itself: Modal's own proxy headers would lock plain OpenAI clients out.
        "unauthenticated": True,
        "enable_memory_snapshot": True,
        "experimental_options": {"enable_gpu_snapshot": True},
        # A resume may have to cold-start once, so the limit covers a load twice. Modal wants whole seconds.
        "startup_timeout": math.ceil(2 * (model.start_s + _WARMUP_S)),
        "exit_grace_period": math.ceil(model.grace_s) + 10,
        "min_containers": model.min_containers,
        "max_containers": model.max_containers,
        "scaledown_window": model.scaledown_window_s,
        "target_concurrency": model.slots,
    }


def builder(model: Model) -> dict[str, Any]:
    """Options of `@app.function` for the compilation: no GPU is needed, the architecture is named."""
    image = _image("devel", "git", "cmake", "ninja-build", "build-essential").pip_install(*_PIPELINE)
    return {
        "image": _with_sources(image.env({"LLAMA_CPP_TAG": model.llama_cpp_tag})),
        "volumes": {str(BUILDS): builds_volume},
        "cpu": 16.0,
        "memory": 32_768,
        "timeout": 7200,
        "max_containers": 1,  # a lock holds on one host only
    }


def downloader(model: Model) -> dict[str, Any]:
    """Options of `@app.function` for the download."""
    image = modal.Image.debian_slim(_PYTHON).pip_install(*_PIPELINE).env({"HF_XET_HIGH_PERFORMANCE": "1"})
    return {
        "image": _with_sources(image),
        "volumes": {str(MODELS): models_volume},
        "secrets": [modal.Secret.from_name(model.hf_secret, required_keys=["HF_TOKEN"])],
        "cpu": 4.0,
        "timeout": 7200,
        "max_containers": 1,
    }


def inspector(model: Model) -> dict[str, Any]:  # noqa: ARG001  symmetric with the others
    """Options of `@app.function` for what only looks at the volumes, or switches a pointer on them."""
    image = _image("runtime", "libgomp1").pip_install(*_PIPELINE)
    return {
        "image": _with_sources(image),
        "volumes": {str(MODELS): models_volume, str(BUILDS): builds_volume},
        "timeout": 3600,
        "max_containers": 1,
    }


class Server:
    """The three lifecycle methods. An entry's class inherits them and sets `model`.

    Order in a container: `start`, snapshot, `resume`, then Modal registers the port, then SIGTERM, `stop`. After a
    restore only `resume` and `stop` run. The server listens all the while; what keeps requests from one that is not
    verified is that Modal registers the port, and so sends them, only once `resume` has returned.
    """

    model: Model
    _daemon: Daemon | None = None
    _sink: Sink | None = None

    @modal.enter(snap=True)
    def start(self) -> None:
        """Artifacts verified, server loaded and warm, strangers refused, sealed: the state that the snapshot keeps.

        Raises:
            SupervisorError: whatever kept it from that; nothing of the server is left then.
        """
        from supervisor import Daemon
        from supervisor.logs.sink import Sink

        self.reload()
        as_json = os.environ.get("WARMBOOT_LOG_FORMAT") == "json"  # set by a rehearsal, or in the image
        self._sink = Sink(sys.stderr, "json" if as_json else "console")
        try:
            hooks = self.hooks()
            daemon = Daemon(self.profile(), replace(hooks, observers=(*hooks.observers, self._sink)))
            self._daemon = daemon
            daemon.start()
            daemon.seal()
        except BaseException:
            self.close()  # Modal runs no exit hook after a failed enter hook
            raise

    @modal.enter(snap=False)
    def resume(self) -> None:
        """Verifies the restored server and arms the watchdog; a dead or wrong one is replaced by a cold start.

        Raises:
            SupervisorError: that failed too; Modal discards the container.
        """
        assert self._daemon
        try:
            self._daemon.resume()
        except BaseException:
            self.close()
            raise

    @modal.exit()
    def stop(self) -> None:
        """Stops the server within its grace period."""
        self.close()

    def close(self) -> None:
        """Ends the server and every thread of ours: Modal would wait 30 s for one that lingers. Idempotent."""
        if self._daemon is not None:
            self._daemon.stop()
        if self._sink is not None:
            self._sink.close()

    # What a test or another engine replaces.

    def reload(self) -> None:
        """Sees what was committed since the volumes were mounted; before the first look at a path."""
        models_volume.reload()
        builds_volume.reload()

    def profile(self) -> Profile:
        """The server to supervise: the promoted build, closed by the key of the environment.

        Raises:
            ProfileError: `API_KEY` is missing or blank. An endpoint is never opened by accident.
        """
        from modal_entry.pipeline.releases import resolve
        from supervisor import Secret

        key = Secret(os.environ.get("API_KEY", ""), name="API_KEY")
        return self.model.profile(resolve(BUILDS), key)

    def hooks(self) -> Hooks:
        """The Steps of the model; what the contract finds goes to the log, warnings too."""
        from hooks.contract.findings import telling

        return self.model.hooks(telling(self._sink.say) if self._sink else None)
