"""What can go wrong with GPU memory that is put aside.

GpuMemoryError               base
├── NoCompiler                   there is no C compiler to build the library with
├── CompileFailed                it refused the sources
├── Unreachable                  a process ended, or its socket did, before it answered
├── Unreadable                   an answer that the library does not give
├── BadRequest                   the library did not understand: another version of it
├── NotIdle                      work was on the GPU for too long
├── OutOfGpuMemory               somebody took the room meanwhile: bytes wanted and free
├── OutOfHostMemory              no room for the copy
├── Damaged                      bytes came back wrong: addresses
├── CudaFailed                   the driver refused a call
└── NothingCaught                the library is there, and off
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from supervisor.errors import SupervisorError

__all__ = [
    "BadRequest",
    "CompileFailed",
    "CudaFailed",
    "Damaged",
    "DamagedChunk",
    "GpuMemoryError",
    "NoCompiler",
    "NotIdle",
    "NothingCaught",
    "OutOfGpuMemory",
    "OutOfHostMemory",
    "Unreachable",
    "Unreadable",
    "gb",
]


def gb(size_bytes: int) -> str:
    """A size for a message, such as `46.4 GB` or `33.6 MB`."""
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"


class GpuMemoryError(SupervisorError):
    """Base of all errors about GPU memory that is put aside."""


@dataclass(eq=False, repr=False, kw_only=True)
class NoCompiler(GpuMemoryError):
    """There is no C compiler.

    Attributes:
        compiler: what was looked for.
    """

    cli_status: ClassVar[int] = 3
    compiler: str

    @property
    def summary(self) -> str:
        return (
            f"there is no C compiler {self.compiler!r}: install one (on Debian: apt-get install gcc libc6-dev), "
            "or name another in the variable CC."
        )


@dataclass(eq=False, repr=False, kw_only=True)
class CompileFailed(GpuMemoryError):
    """The compiler refused the library's sources, or was refused itself.

    Attributes:
        compiler: which one.
        reason: how it ended.
        tail: its last lines.
    """

    cli_status: ClassVar[int] = 3
    compiler: str
    reason: str
    tail: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        return f"{self.compiler!r} could not build the GPU memory library: {self.reason}."


@dataclass(eq=False, repr=False, kw_only=True)
class _OfProcess(GpuMemoryError):
    """Base: what a process with GPU memory answered, or did not.

    Attributes:
        pid: of the process.
        operation: what it was asked to do: `status`, `offload` or `reload`.
    """

    pid: int
    operation: str

    @property
    def _what(self) -> str:
        doing = {"offload": "could not put its GPU memory aside", "reload": "could not bring its GPU memory back"}
        return f"process {self.pid} {doing.get(self.operation, 'could not tell of its GPU memory')}"


@dataclass(eq=False, repr=False, kw_only=True)
class Unreachable(_OfProcess):
    """The process ended, or closed its socket, before it answered.

    Attributes:
        reason: how that was seen.
        connected: False: nobody listens there, so that the process has most likely ended long ago.
    """

    reason: str
    connected: bool = True

    @property
    def summary(self) -> str:
        return f"{self._what}: {self.reason}."


@dataclass(eq=False, repr=False, kw_only=True)
class Unreadable(_OfProcess):
    """The answer is none that the library gives. `seen`: how it begins."""

    seen: str

    @property
    def summary(self) -> str:
        return f"{self._what}: its answer cannot be read: {self.seen!r}. Build the library anew, from this version."


@dataclass(eq=False, repr=False, kw_only=True)
class BadRequest(_OfProcess):
    """The library did not understand the request, so that it is of another version. `detail`: its words."""

    detail: str

    @property
    def summary(self) -> str:
        return f"{self._what}: it refuses the request ({self.detail}). Build the library anew, from this version."


@dataclass(eq=False, repr=False, kw_only=True)
class NotIdle(_OfProcess):
    """Work was on the GPU for too long; nothing was changed. `detail`: the library's words."""

    detail: str

    @property
    def summary(self) -> str:
        return f"{self._what}: the GPU is not idle ({self.detail}). Stop requests first, and the engine's own work."


@dataclass(eq=False, repr=False, kw_only=True)
class OutOfGpuMemory(_OfProcess):
    """The GPU got too full meanwhile; the process sleeps on and is whole.

    Attributes:
        device: the number of the GPU, as the process counts.
        wanted_bytes, free_bytes: of GPU memory.
    """

    device: int
    wanted_bytes: int
    free_bytes: int

    @property
    def summary(self) -> str:
        return (
            f"{self._what}: GPU {self.device} has {gb(self.free_bytes)} free, and it needs {gb(self.wanted_bytes)}. "
            "Put the memory of another server aside first, or end it."
        )


@dataclass(eq=False, repr=False, kw_only=True)
class OutOfHostMemory(_OfProcess):
    """The host, or its container, has no room for the copy; nothing was changed. `wanted_bytes`: of it."""

    wanted_bytes: int

    @property
    def summary(self) -> str:
        return f"{self._what}: there is no host memory for a copy of {gb(self.wanted_bytes)}. Give it that much more."


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedChunk:
    """A piece of memory whose checksum is wrong: GPU, address as the process sees it (`0x...`), length."""

    device: int
    address: str
    bytes: int

    def __str__(self) -> str:
        return f"{self.bytes} bytes at {self.address} of GPU {self.device}"


@dataclass(eq=False, repr=False, kw_only=True)
class Damaged(_OfProcess):
    """Bytes did not come back as they left; the process cannot be used any more, and a cold start heals it.

    Attributes:
        chunks: how many pieces are wrong; 0: an earlier reload had found some.
        damaged: the first of them.
        detail: the library's words.
    """

    chunks: int
    damaged: tuple[DamagedChunk, ...]
    detail: str = ""

    @property
    def summary(self) -> str:
        where = (
            f" ({'; '.join(map(str, self.damaged))})" if self.damaged else f" ({self.detail})" if self.detail else ""
        )
        if not self.chunks:
            return f"{self._what}: it came back damaged before{where}. Only a cold start heals this."
        many = f"{self.chunks} pieces" if self.chunks != 1 else "a piece"
        return f"{self._what}: {many} of it came back damaged{where}. Only a cold start heals this."


@dataclass(eq=False, repr=False, kw_only=True)
class CudaFailed(_OfProcess):
    """The CUDA driver refused a call.

    Attributes:
        call: of the driver.
        code, name: of its error.
        detail: the library's words.
    """

    call: str
    code: int
    name: str
    detail: str = ""

    @property
    def summary(self) -> str:
        said = f" ({self.detail})" if self.detail else ""
        return f"{self._what}: {self.call} failed with {self.name or 'error'} ({self.code}){said}."


@dataclass(eq=False, repr=False, kw_only=True)
class NothingCaught(_OfProcess):
    """The library is in the process and catches nothing. `detail`: why."""

    detail: str

    @property
    def summary(self) -> str:
        return f"{self._what}: the library is off there ({self.detail})."
