"""`GpuMemory`: what a profile and its hooks need to have the server's GPU memory put aside while it is sealed."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio.to_thread

from hooks.sleep.accounting import TOLERANCE_BYTES
from hooks.sleep.folder import VARIABLE, PrivateFolder, folder_of, new_path
from hooks.sleep.offload import build
from hooks.sleep.steps import NO_FOLDER, Memory, Offload, Reload, SelfCheck
from supervisor import checks, events
from supervisor.errors import ProfileError, require
from supervisor.redact import Secret
from supervisor.steps import Hooks, step

if TYPE_CHECKING:
    from supervisor.child import Child
    from supervisor.profile import Profile
    from supervisor.steps import Step

__all__ = ["GpuMemory"]

_PRELOAD: Final = "LD_PRELOAD"
# torch's old name and its new one: https://docs.pytorch.org/docs/stable/notes/cuda.html
_ALLOCATORS: Final = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
_EXPANDABLE: Final = re.compile(r"(?i)expandable_segments\s*:\s*true")


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMemory:
    """Puts the GPU memory of any CUDA engine aside at the seal, and brings it back at the resume.

        memory = GpuMemory(proof=(golden.replay,))
        supervise(memory.profile(profile), hooks + memory.hooks())

    One of it belongs to one server. A server that cannot use it starts all the same, and a notice says why.

    Attributes:
        threads: that copy, for each GPU; 0: as many as there are processors, from 2 to 16.
        verify: every byte is checksummed on the way out and verified on the way in.
        proof: Steps that pass only on a server whose memory came back right, such as `Golden.replay`; the self-check
            runs them.
        self_check: before the first seal of a life, see whether all GPU memory in use was caught, and put it aside and
            back once in place.
        for_snapshot: the sleep is for a snapshot, which the platform makes of the server's processes; False: the server
            sleeps and wakes on its host.
        library: the built library; None: that of `supervise gpu-memory build`.
        idle_s: how long work that is on the GPU when the seal begins may take.
        tolerance_bytes: of GPU memory that a process may hold on a GPU beside what was caught; see `accounting`.
        deadline_s: of each of the Steps; None: the profile's `timeouts.step_s`.

    Raises:
        ProfileError: at construction; a setting is wrong.
    """

    threads: int = 0
    verify: bool = True
    proof: tuple[Step, ...] = ()
    self_check: bool = True
    for_snapshot: bool = True
    library: Path | None = None
    idle_s: float = 30.0
    tolerance_bytes: int = TOLERANCE_BYTES
    deadline_s: float | None = None
    _memory: Memory = field(default_factory=Memory, init=False, repr=False, compare=False)
    _folder: PrivateFolder = field(default_factory=PrivateFolder, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        checks.count("gpu_memory.threads", self.threads, 0, 64)
        for name in ("verify", "self_check", "for_snapshot"):
            value = getattr(self, name)
            require(isinstance(value, bool), f"gpu_memory.{name}", value, "True or False")
        Hooks(sleep=self.proof)  # refuses what is no Step
        if self.library is not None:
            object.__setattr__(self, "library", checks.as_path("gpu_memory.library", self.library).absolute())
        checks.seconds("gpu_memory.idle_s", self.idle_s)
        checks.count("gpu_memory.tolerance_bytes", self.tolerance_bytes, 0, 1 << 50)
        if self.deadline_s is not None:
            checks.seconds("gpu_memory.deadline_s", self.deadline_s)

    def profile(self, profile: Profile) -> Profile:
        """Return the profile with what preloads the library into the server; the same when no library was built.

        Raises:
            ProfileError: the server's GPU memory cannot be put aside as it is configured; names the setting to change.
        """
        hint = profile.dialect.gpu_memory_hint
        if hint and (why := hint(profile.command)):
            raise ProfileError(field="gpu_memory", value="offload", allowed=f"'driver', because {why}")
        for name in _ALLOCATORS:
            value = profile.env.get(name)
            expandable = isinstance(value, str) and _EXPANDABLE.search(value) is not None
            allowed = "without expandable_segments:True: memory that torch maps itself cannot be put aside"
            require(not expandable, f"env[{name}]", value, allowed)
        library = self.library or build.find()
        if library is None or not build.can_be_preloaded(library):
            return profile
        env = {VARIABLE: os.fspath(new_path()), **profile.env, _PRELOAD: _joined(library, profile)}
        return replace(profile, env=env)

    def hooks(self) -> Hooks:
        """Return the Steps and the observer. Steps of the engine's own that pause its work stand before these."""
        shared: dict[str, Any] = {
            "threads": self.threads,
            "verify": self.verify,
            "idle_s": self.idle_s,
            "for_snapshot": self.for_snapshot,
            "memory": self._memory,
            "deadline_s": self.deadline_s,
        }
        check = SelfCheck(**shared, proof=self.proof, tolerance_bytes=self.tolerance_bytes)
        offload = Offload(**shared)
        return Hooks(
            before_start=(step("gpu memory library", self._prepare),),
            sleep=(check, offload) if self.self_check else (offload,),
            wake=(Reload(**shared),),
            observers=(self._folder.observe,),
        )

    async def _prepare(self, child: Child) -> None:
        """Makes the folder; what is wrong with it or with the library is a notice, and the server starts without.

        Raises:
            FolderInUse: another server runs with the same profile.
        """
        self._memory.missing = await self._missing(child)
        if self._memory.missing:
            words = f"GPU memory cannot be put aside: {self._memory.missing}"
            child.tell(events.Notice(detail=child.redact(words)))

    async def _missing(self, child: Child) -> str:
        """Why the library will not be in the server; empty: it will."""
        folder = folder_of(child)
        if folder is None:
            built = self.library or build.find()
            why = await anyio.to_thread.run_sync(build.load_error, built) if built else None
            return f"the library cannot be loaded: {why}" if why else NO_FOLDER
        first = child.env.get(_PRELOAD, "").partition(":")[0]
        if why := await anyio.to_thread.run_sync(build.load_error, Path(first)):
            return f"the library cannot be loaded: {why}"
        try:
            await anyio.to_thread.run_sync(self._folder.make, folder)
        except OSError as error:
            return f"its sockets have no folder: {error}"
        return ""


def _joined(library: Path, profile: Profile) -> str:
    """Our library before those that the profile, or the host, preloads into the server anyway."""
    theirs = profile.env.get(_PRELOAD)
    if theirs is None and any(fnmatchcase(_PRELOAD, pattern) for pattern in profile.inherit_env):
        theirs = os.environ.get(_PRELOAD)
    text = theirs.reveal() if isinstance(theirs, Secret) else theirs or ""
    others = [path for path in re.split(r"[\s:]+", text) if path and path != os.fspath(library)]
    return ":".join([os.fspath(library), *others])
