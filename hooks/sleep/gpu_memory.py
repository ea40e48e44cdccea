"""`GpuMemory`: what a profile and its hooks need to have the server's GPU memory put aside while it is sealed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from supervisor.steps import Hooks

if TYPE_CHECKING:
    from supervisor.profile import Profile
    from supervisor.steps import Step

__all__ = ["GpuMemory"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMemory:
    """Puts the GPU memory of any CUDA engine aside at the seal, and brings it back at the resume.

        memory = GpuMemory(proof=(golden.replay,))
        supervise(memory.profile(profile), hooks + memory.hooks())

    One of it belongs to one server.

    Attributes:
        threads: that copy.
        verify: every byte is checksummed on the way out and verified on the way in.
        proof: Steps that pass only on a server whose memory came back right, such as `Golden.replay`; the self-check
            runs them.
        self_check: before the first seal of a life, see whether all GPU memory in use was caught, and put it aside and
            back once in place.
        for_snapshot: the sleep is for a snapshot, which the platform makes of the server's processes; False: the server
            sleeps and wakes on its host.
        library: the built library; None: that of `supervise gpu-memory build`.
    """

    threads: int = 8
    verify: bool = True
    proof: tuple[Step, ...] = ()
    self_check: bool = True
    for_snapshot: bool = True
    library: Path | None = None

    def profile(self, profile: Profile) -> Profile:
        """Return the profile with what preloads the library into the server; raises ProfileError."""
        return profile

    def hooks(self) -> Hooks:
        """Return the Steps and the observer."""
        return Hooks()
