"""The Steps that put a server's GPU memory aside at the seal and bring it back at the resume."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from supervisor.child import Child

__all__ = ["Offload", "Reload"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Offload:
    """A Step for `sleep`: puts the GPU memory of every process of the server aside."""

    threads: int = 8
    verify: bool = True
    idle_s: float = 30.0
    name: str = "gpu memory offload"
    deadline_s: float | None = None

    async def __call__(self, child: Child) -> None:
        """Do it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reload:
    """A Step for `wake`: brings the GPU memory of every process of the server back."""

    threads: int = 8
    name: str = "gpu memory reload"
    deadline_s: float | None = None

    async def __call__(self, child: Child) -> None:
        """Do it."""
