"""The Steps that put a server's GPU memory aside at the seal and bring it back at the resume.

The order is fixed: requests are stopped, the GPU is idle, the memory goes; the platform's snapshot and restore; the
memory comes back, and only then may anything reach the GPU, a health probe that computes included. Work that reaches
the GPU in between is an illegal access, or a wrong result without any error.

What is done when it does not work. Nothing can be moved (the library is not there, memory escaped it, the host has no
room, the driver refused): the platform's way is taken, with a notice that says why; where no platform follows, because
the server sleeps on its host, the Step fails with these words. The engine is not idle: the seal is refused. In both
cases the child serves on. Memory came back wrong, or the proof fails after it came back: the Step fails, `Reload` does
not let such a child serve, and it is replaced by a cold start.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from hooks.sleep.accounting import REMEDY, TOLERANCE_BYTES, escaped, spread
from hooks.sleep.folder import folder_of
from hooks.sleep.moving import look, offload_all, reload_all, sleep_on
from hooks.sleep.offload.errors import (
    CudaFailed,
    GpuMemoryError,
    NothingCaught,
    OutOfGpuMemory,
    OutOfHostMemory,
)
from supervisor import events
from supervisor.errors import StillAsleep

if TYPE_CHECKING:
    from pathlib import Path

    from hooks.sleep.moving import AllMoved
    from hooks.sleep.offload.client import Status
    from supervisor.child import Child
    from supervisor.steps import Step

__all__ = ["NO_FOLDER", "Memory", "Offload", "ProofFailed", "Reload", "SelfCheck", "SeveralGpus", "StaysThere"]

NO_FOLDER: Final = (
    "its profile preloads no library. Build it with `supervise gpu-memory build`, then start the server again; a "
    "profile of your own must come from GpuMemory.profile"
)
_NOTHING: Final = (
    "A server that uses no GPU has no such memory; else its CUDA runtime may be linked statically, or its allocator be "
    "one of its own."
)
_IPC: Final = (
    "memory that can be put aside cannot be shared with another process. Where the server needs that, leave its memory "
    'to the platform: gpu_memory="driver"'
)


@dataclass(eq=False, repr=False, kw_only=True)
class SeveralGpus(GpuMemoryError):
    """Processes on several GPUs are to be snapshotted, which the driver does not bring back.

    Attributes:
        pids: the processes.
    """

    pids: tuple[int, ...]

    @property
    def summary(self) -> str:
        return (
            f"processes {', '.join(map(str, self.pids))} hold memory of different GPUs, as the ranks of a "
            "tensor-parallel engine do. The CUDA driver takes a checkpoint of such processes and fails to restore it "
            "(driver 580), so no snapshot is made. Serve the model on one GPU, or let it sleep on its host: "
            "GpuMemory(for_snapshot=False)."
        )


@dataclass(eq=False, repr=False, kw_only=True)
class StaysThere(GpuMemoryError):
    """The server was to sleep on its host, and its memory cannot be moved; it serves on.

    Attributes:
        reason: why not, and what to do.
    """

    reason: str

    @property
    def summary(self) -> str:
        return f"the server's GPU memory stays on the GPU: {self.reason}"


@dataclass(eq=False, repr=False, kw_only=True)
class ProofFailed(GpuMemoryError):
    """The server's memory went and came back, byte for byte, and it does not do what it did before.

    Attributes:
        proof: the Step that says so.
        reason: its words.
    """

    proof: str
    reason: str

    @property
    def summary(self) -> str:
        return (
            f"after its GPU memory was put aside and brought back once, {self.proof!r} fails: {self.reason}. Most "
            "likely the engine worked on the GPU meanwhile, of its own accord. Leave its memory to the platform: "
            'gpu_memory="driver".'
        )


@dataclass(slots=True)
class Memory:
    """What the Steps of one server know; plain values, which a snapshot of the supervisor holds like any others.

    Attributes:
        missing: why the library is not in the server, found before its start; empty: it is there.
        hopeless: why this server's memory is left to the platform in all lives to come.
        life: the present life, by the child's cookie and pid; what follows is of this life.
        checked: the self-check has passed.
        left: the platform's way is taken, and that was said.
        away: the processes whose memory was put aside.
        broken: how the server was found to be damaged.
    """

    missing: str = ""
    hopeless: str = ""
    life: tuple[str | None, int | None] | None = None
    checked: bool = False
    left: bool = False
    away: tuple[int, ...] = ()
    broken: GpuMemoryError | None = None

    def of(self, child: Child) -> Memory:
        """The same, emptied when another life has begun."""
        if self.life != (child.cookie, child.pid):
            self.life = (child.cookie, child.pid)
            self.checked = self.left = False
            self.away, self.broken = (), None
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moving:
    """What the Steps share.

    Attributes:
        threads: that copy, for each GPU; 0: as many as there are processors, from 2 to 16.
        verify: checksum every byte on the way out, and verify it on the way in.
        idle_s: how long work that is on the GPU may take, before it counts as not idle.
        for_snapshot: the platform snapshots the server's processes; False: it sleeps and wakes on its host.
        memory: shared by the Steps of one server.
        deadline_s: see `Step`.
    """

    threads: int = 0
    verify: bool = True
    idle_s: float = 30.0
    for_snapshot: bool = True
    memory: Memory = field(default_factory=Memory, repr=False, compare=False)
    deadline_s: float | None = None

    def _leave(self, child: Child, memory: Memory, why: str) -> None:
        if not self.for_snapshot:
            raise StaysThere(reason=child.redact(why))
        memory.left = True
        child.tell(events.Notice(detail=child.redact(f"GPU memory is left to the platform: {why}")))

    async def _holders(self, child: Child, memory: Memory) -> tuple[Path, tuple[Status, ...]] | None:
        """The processes with memory that can be put aside; None: it is left where it is."""
        folder = folder_of(child)
        if memory.left:
            return None
        if folder is None or memory.missing or memory.hopeless:
            self._leave(child, memory, memory.missing or memory.hopeless or NO_FOLDER)
            return None
        found = await look(folder)
        holders = tuple(status for status in found if status.bytes)
        if not holders:
            reasons = sorted({status.reason for status in found if status.reason})
            words = f"the library is off ({'; '.join(reasons)})" if reasons else "the library caught nothing"
            self._leave(child, memory, f"{words}. {_NOTHING} {REMEDY}.")
            return None
        if self.for_snapshot and (pids := spread(holders)):
            raise SeveralGpus(pids=pids)
        return folder, holders

    async def _put_aside(
        self, child: Child, memory: Memory, folder: Path, holders: tuple[Status, ...]
    ) -> AllMoved | None:
        """None: it could not be, and the platform's way is taken."""
        pids = tuple(status.pid for status in holders)
        try:
            moved = await offload_all(folder, pids, threads=self.threads, verify=self.verify, idle_s=self.idle_s)
        except (OutOfHostMemory, CudaFailed, NothingCaught) as error:
            if error.operation != "offload" or not self.for_snapshot:
                raise
            self._leave(child, memory, error.summary)
            return None
        memory.away = pids
        return moved

    async def _bring_back(self, memory: Memory, folder: Path) -> AllMoved:
        moved = await reload_all(folder, away=memory.away, threads=self.threads)
        memory.away = ()
        return moved


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfCheck(_Moving):
    """A Step for `sleep`, before `Offload`: sees once a life whether the server's memory can be put aside.

    All GPU memory in use must have been caught (`accounting` says how that is judged), and the `proof` must pass before
    and after the memory went and came back in place.

    Attributes:
        proof: Steps that pass only on a server whose memory is right.
        tolerance_bytes: see `accounting.TOLERANCE_BYTES`.
    """

    proof: tuple[Step, ...] = ()
    tolerance_bytes: int = TOLERANCE_BYTES
    name: str = "gpu memory self-check"

    async def __call__(self, child: Child) -> None:
        """Check, and remember the result.

        Raises:
            GpuMemoryError: see the module.
            Exception: a proof fails before anything was moved.
        """
        memory = self.memory.of(child)
        held = None if memory.checked else await self._holders(child, memory)
        if held is None:
            return
        folder, holders = held
        if losses := escaped(holders, self.tolerance_bytes):
            words = f"{'; '.join(map(str, losses))}. {REMEDY}."
            if self.for_snapshot:
                self._leave(child, memory, words)
                return
            child.tell(events.Notice(detail=f"GPU memory that stays on the GPU: {words}"))
        if refused := sum(status.ipc_refused for status in holders):
            words = f"CUDA IPC of GPU memory was refused to the server {refused} times: {_IPC}"
            child.tell(events.Notice(detail=words))
        for proof in self.proof:
            await proof(child)
        if await self._put_aside(child, memory, folder, holders) is None:
            return
        await self._bring_back(memory, folder)
        for proof in self.proof:
            try:
                await proof(child)
            except Exception as error:
                memory.broken = ProofFailed(proof=proof.name, reason=child.redact(str(error)).rstrip("."))
                memory.hopeless = f"an earlier life showed that {memory.broken.summary}"
                raise memory.broken from error
        memory.checked = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Offload(_Moving):
    """A Step for `sleep`, the last one: puts the GPU memory of every process of the server aside.

    On a profile that `GpuMemory.profile` did not make it does nothing.
    """

    name: str = "gpu memory offload"

    async def __call__(self, child: Child) -> None:
        """Put it aside; raises GpuMemoryError, see the module."""
        memory = self.memory.of(child)
        held = await self._holders(child, memory)
        moved = await self._put_aside(child, memory, *held) if held else None
        if moved:
            child.tell(
                events.GpuMemoryOffloaded(
                    pids=moved.pids,
                    bytes=moved.bytes,
                    stored_bytes=moved.stored_bytes,
                    took_s=moved.took_s,
                    gb_per_s=moved.gb_per_s,
                )
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reload(_Moving):
    """A Step for `wake`, the first one: brings the GPU memory of every process of the server back. Idempotent."""

    name: str = "gpu memory reload"

    async def __call__(self, child: Child) -> None:
        """Bring it back; raises GpuMemoryError, see the module, and StillAsleep where the GPU is too full now."""
        memory = self.memory.of(child)
        if memory.broken is not None:
            raise memory.broken
        folder = folder_of(child)
        if folder is None:
            return
        try:
            moved = (await self._bring_back(memory, folder)).new
        except OutOfGpuMemory as error:
            if self.for_snapshot:
                raise
            # On its host another server has the room now, and may give it back: this one can be woken later.
            await sleep_on(folder, memory.away, threads=self.threads, verify=self.verify, idle_s=self.idle_s)
            raise StillAsleep(reason=error.summary) from error
        if moved.moved:
            child.tell(
                events.GpuMemoryReloaded(
                    pids=moved.pids,
                    bytes=moved.bytes,
                    stored_bytes=moved.stored_bytes,
                    took_s=moved.took_s,
                    gb_per_s=moved.gb_per_s,
                )
            )
