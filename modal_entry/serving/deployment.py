"""The sheet of one deployment: model, build, machine, limits and scaling, with the profile and the hooks they mean."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, get_args

from modal_entry.serving import volumes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hooks.artifacts.inventory import Artifact
    from hooks.contract.findings import Finding
    from supervisor import Hooks, Profile, Secret
    from supervisor.steps import Step

__all__ = ["PORT", "Deployment", "Way"]

PORT: Final = 8000
Way = Literal["offload", "driver"]

_EXIT_CODE: Final = 1  # of a container whose server crashed: Modal replaces it
_GRACE_S: Final = 20.0  # Modal gives exit hooks 30 s
_DRAIN_S: Final = 3600.0  # Modal's limit
_STEP_S: Final = 120.0  # each Step, unless it has a limit of its own
_GOLDEN_S: Final = 30.0  # a golden answer: one that hangs after a restore must not use up the startup timeout
_RESUME_S: Final = 60.0
_COPY_S: Final = 120.0  # volumes reloaded, the build copied and hashed
_HEADROOM_GIB: Final = 8.0  # host memory beside the GPU's: Python, the page cache of the load, the server's own


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What one Modal app serves, and how.

    Attributes:
        app: the name of the Modal app; each app has its own pointer to a build.
        name: what clients call the model, and the name of its folder on the volume.
        repo: where the files come from.
        revision: of the repository. A commit's hash. A branch is resolved by the first download and never followed.
        weights, mmproj: file names in the repository; mmproj is None for a model without vision.
        llama_cpp_tag: the tag to compile; the variable LLAMA_CPP_TAG wins, see `tag`.
        gpu: Modal's name of the GPU.
        gpu_use_gib: GPU memory in use. A checkpoint moves it to the host, so the server asks for as much there.
        gpu_memory: who moves it. "offload": the library that lies in the build beside the server, before the platform's
            checkpoint and after its restore, several times faster and with every byte verified; a build without it, and
            a server that fails the self-check before the seal, are left to the driver, with a notice that says why.
            "driver": the platform, by the CUDA driver.
        cpu: cores to ask for.
        ctx_size: tokens in all, shared by the slots.
        slots: requests served at once; also Modal's target concurrency.
        cache_type_k, cache_type_v: types of the KV cache.
        template: a chat template among the build's files, which replaces the model's own; None: the model's own.
        warmups: paths to run before the snapshot: text, thinking, image, tools.
        api_key_secret: the Modal Secret that holds `API_KEY`; hf_secret: the one that holds `HF_TOKEN`.
        unauthenticated: False puts Modal's proxy authentication in front: clients must then send `Modal-Key` and
            `Modal-Secret` as well, which plain OpenAI clients do not. The API key is asked for either way.
        min_containers, max_containers, scaledown_window_s: Modal's scaling.
        start_s: the load, seconds.
        drain_s: for requests in flight when a container is to stop; SIGTERM comes after them. At most 3600.
        grace_s: for the server to end after SIGTERM. At most 20, because Modal gives exit hooks 30 s.

    Raises:
        ProfileError: a number out of range, or a GPU that is not known.
    """

    app: str
    name: str
    repo: str
    revision: str
    weights: str
    mmproj: str | None = None
    llama_cpp_tag: str
    gpu: str
    gpu_use_gib: float
    gpu_memory: Way = "offload"
    cpu: float = 4.0
    ctx_size: int
    slots: int
    cache_type_k: str = "f16"
    cache_type_v: str = "f16"
    template: str | None = None
    warmups: tuple[str, ...] = ("text",)
    api_key_secret: str
    hf_secret: str = "huggingface-secret"  # noqa: S105  a name
    unauthenticated: bool = True
    min_containers: int = 0
    max_containers: int = 3
    scaledown_window_s: int = 900
    start_s: float = 600.0
    drain_s: float = 120.0
    grace_s: float = _GRACE_S

    def __post_init__(self) -> None:
        for field, high in (("grace_s", _GRACE_S), ("drain_s", _DRAIN_S), ("gpu_use_gib", 1024.0)):
            if not 0 <= getattr(self, field) <= high:
                from supervisor.errors import ProfileError

                raise ProfileError(field=field, value=getattr(self, field), allowed=f"from 0 to {high:g}")
        if self.gpu_memory not in get_args(Way):
            from supervisor.errors import ProfileError

            raise ProfileError(field="gpu_memory", value=self.gpu_memory, allowed=" or ".join(get_args(Way)))

    @property
    def tag(self) -> str:
        """The tag of llama.cpp to build and to promote: `LLAMA_CPP_TAG`, or else the sheet's."""
        return os.environ.get("LLAMA_CPP_TAG") or self.llama_cpp_tag

    def build_folder(self, tag: str) -> str:
        """The name of the folder of a tag's build for this GPU.

        Raises:
            ProfileError: the GPU's architecture is not known.
        """
        from modal_entry.pipeline.cmake import architecture
        from modal_entry.pipeline.manifest import folder_name

        return folder_name(tag, architecture(self.gpu))

    @property
    def folder(self) -> Path:
        """The files' folder in a container: one for each revision, so that a new one leaves the deployed one alone."""
        return volumes.MODELS / self.name / self.revision

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """All files, as the download and the checks see them."""
        from hooks.artifacts.inventory import Artifact

        return tuple(Artifact(path=name, kind="gguf") for name in (self.weights, self.mmproj) if name)

    @property
    def memory_mib(self) -> int:
        """Host memory to ask for: room for all GPU memory once, and 8 GiB.

        Once, whoever moves it: what the library has put aside is off the GPU by the time that the driver's checkpoint
        moves the rest (CUDA's context and allocations below 8 MiB: about 0.5 GB), and zeros are not kept at all. The
        library's pinned buffers (tens of MiB) are given back before that.
        """
        return math.ceil((self.gpu_use_gib + _HEADROOM_GIB) * 1024)

    @property
    def startup_timeout_s(self) -> int:
        """All that may happen before Modal registers the port, each Step at its limit.

        That is a start with its seal, a resume, and a second start with seal and resume in place of a server that did
        not survive. Where GPU memory is offloaded, each seal may fail at that, and a start with a seal in the driver's
        way takes its place.
        """
        offloads = self.gpu_memory == "offload"
        goldens = 2 if self.mmproj else 1
        start_s = _COPY_S + 2 * _STEP_S + self.start_s + (len(self.warmups) + 1) * _STEP_S
        seal_s = 2 * _STEP_S + goldens * _GOLDEN_S
        resume_s = _RESUME_S + goldens * _GOLDEN_S
        if offloads:  # library and folder; self-check and offload, and a reload that undoes them; reload
            offloaded_s = start_s + _STEP_S + seal_s + 3 * _STEP_S + self.grace_s
            return math.ceil(2 * (offloaded_s + start_s + seal_s + _STEP_S + resume_s) + self.grace_s)
        return math.ceil(2 * (start_s + seal_s + resume_s) + self.grace_s)

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
            timeouts=Timeouts(start_s=self.start_s, step_s=_STEP_S, resume_s=_RESUME_S),
            stop=Stop(grace_s=self.grace_s),
            restart=Restart(policy="on-resume", max_restarts=1, host_exit_code=_EXIT_CODE),
            liveness=Liveness(armed="resume"),
        ).profile()

    def steps(self) -> tuple[Step, ...]:
        """The warmups, then the proof that strangers are refused."""
        from hooks.auth import AuthCheck
        from hooks.warmup.steps import parse

        return (*map(parse, self.warmups), AuthCheck())

    def hooks(
        self, *, refresh: Step | None = None, on_findings: Callable[[tuple[Finding, ...]], None] | None = None
    ) -> Hooks:
        """Artifacts verified before the start; warm and closed before the snapshot; a tiny inference as liveness.

        Before the seal golden answers are recorded and the snapshot contract is checked; after a restore those answers
        must come back.

        Args:
            refresh: runs before everything else, at a cold start after a restore too.
            on_findings: is given what the contract finds.
        """
        from hooks.artifacts.step import ArtifactsPresent
        from hooks.contract.step import SnapshotContract
        from hooks.golden.step import goldens
        from hooks.warmup.steps import Ping
        from supervisor import Hooks

        present = ArtifactsPresent(
            root=self.folder,
            artifacts=self.artifacts,
            repo=self.repo,
            revision=self.revision,
            mend="run download_model",
        )
        contract = SnapshotContract(remounted=(volumes.MODELS, volumes.BUILDS), on_findings=on_findings)
        golden = [replace(answer, deadline_s=_GOLDEN_S) for answer in goldens(mmproj=self.mmproj is not None)]
        return Hooks(
            before_start=(*((refresh,) if refresh else ()), present),
            warmup=self.steps(),
            # Before the recording too: an answer that is given beside leftover requests may not come back the same.
            before_seal=(contract, *(answer.record for answer in golden), contract),
            after_resume=tuple(answer.replay for answer in golden),
            liveness=(Ping(),),
        )
