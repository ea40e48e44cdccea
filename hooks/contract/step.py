"""A Step for `before_seal` that checks the snapshot contract."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread
from tenacity import AsyncRetrying, retry_if_result, stop_after_delay, wait_fixed

from hooks.contract.environment import command, environment, stray_secrets
from hooks.contract.files import io_uring, remounted, stale_files, weights_mapped
from hooks.contract.findings import CHECKS, ContractBroken, ContractUnseen, Finding
from hooks.contract.requests import in_flight, read_load, silent
from hooks.contract.sharing import gpu_sharing, shared_memory
from hooks.contract.sockets import connections
from hooks.contract.tree import members, read_network, read_tree
from hooks.http.answer import BadAnswer
from supervisor.errors import require
from supervisor.linux import files as procfiles

if TYPE_CHECKING:
    from collections.abc import Iterable

    from supervisor.child import Child

__all__ = ["ContractBroken", "ContractUnseen", "Finding", "SnapshotContract"]

# A slot is released, and a socket closed, a moment after the answer that ends a warmup.
_GRACE_S: Final = 0.5
_LOOK_EVERY_S: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotContract:
    """A Step for `before_seal`: refuses the seal while the live process tree breaks the contract. Linux only.

    A broken contract leaves the child READY and serving; it is only not sealed.

    The checks, by name. weights-mapped: no file of the profile's weights is mapped. stale-file: no deleted or replaced
    file is mapped or open. connection: no TCP connection leaves the tree; one inside of it that does not use loopback
    is a warning. io-uring: none is set up. shared-memory: none with a name in /dev/shm, unless the whole container is
    in the snapshot. gpu-sharing: a warning where several processes use GPUs. in-flight: the engine counts no request,
    if it counts any. remounted: no file is open below `remounted`. command: the command
    line is the profile's, else a warning. environment: the profile's variables are there. stray-secret: no variable
    that is named like a secret was inherited.

    Not checked, because /proc does not tell: Unix sockets and pipes that leave the tree, and locks on files.

    Attributes:
        remounted: folders that the platform mounts anew in another container: no file below them may be open, and one
            that is mapped, other than weights, is a warning.
        allowed: shell patterns of paths that may be open or mapped all the same; for stale-file and remounted.
        whole_container: the snapshot holds the container with its /dev/shm, as those of Modal and gVisor do; False: the
            processes alone, as CRIU's.
        waive: checks whose errors are warnings.
        on_findings: is given the findings of every run, also when there are none.
        name, deadline_s: see `Step`.
    """

    remounted: tuple[Path, ...] = ()
    allowed: tuple[str, ...] = ()
    whole_container: bool = True
    waive: tuple[str, ...] = ()
    on_findings: Callable[[tuple[Finding, ...]], None] | None = None
    name: str = "contract"
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        for path in self._items("remounted"):
            self._check(isinstance(path, Path) and path.is_absolute(), "remounted", path, "absolute paths")
        for pattern in self._items("allowed"):
            self._check(isinstance(pattern, str) and bool(pattern), "allowed", pattern, "shell patterns")
        for check in self._items("waive"):
            self._check(check in CHECKS, "waive", check, f"of {', '.join(CHECKS)}")

    async def __call__(self, child: Child) -> None:
        """Read the process tree, and judge it.

        Raises:
            ContractBroken: with every finding, if one of them is an error.
            ContractUnseen: there is no /proc, or a process may not be looked at.
        """
        leader = (await anyio.to_thread.run_sync(members, child))[0]

        async def requests() -> list[Finding]:
            try:
                return in_flight(await read_load(child), leader)
            except BadAnswer as error:
                return [silent(error, child, leader)]

        async def peers() -> list[Finding]:
            return connections(await anyio.to_thread.run_sync(read_network, child), leader)

        # Connections after requests: asking for those makes some.
        found = [*await _with_grace(requests), *await _with_grace(peers)]
        found += await anyio.to_thread.run_sync(self._look, child, leader)
        findings = tuple(self._weigh(finding, child) for finding in found)
        if self.on_findings is not None:
            self.on_findings(findings)
        if any(finding.severity == "error" for finding in findings):
            raise ContractBroken(findings)

    def _look(self, child: Child, leader: int) -> list[Finding]:
        """The checks that one reading is enough for."""
        weights = _names(child.profile.weights)
        tree = read_tree(child, weights)
        variables = procfiles.environment(leader)
        if variables is None:
            raise ContractUnseen(f"/proc/{leader}/environ may not be read")
        return [
            *weights_mapped(tree, weights, child.profile.dialect.no_mmap_hint),
            *stale_files(tree, self.allowed),
            *io_uring(tree, child.profile.dialect.io_uring_hint),
            *shared_memory(tree, whole_container=self.whole_container),
            *gpu_sharing(tree),
            *remounted(tree, _names(self.remounted), weights, self.allowed),
            *command(child, procfiles.argv(leader), leader),
            *environment(child, variables, leader),
            *stray_secrets(child, variables, leader),
        ]

    def _weigh(self, finding: Finding, child: Child) -> Finding:
        return replace(
            finding,
            severity="warning" if finding.check in self.waive else finding.severity,
            what=child.redact(finding.what),
            where=child.redact(finding.where),
            line=child.redact(finding.line),
        )

    def _items(self, field: str) -> tuple[object, ...]:
        value = getattr(self, field)
        self._check(isinstance(value, tuple), field, value, "a tuple")
        return tuple(value)

    def _check(self, ok: bool, field: str, value: object, allowed: str) -> None:
        require(ok, f"{self.name}.{field}", value, allowed)


def _names(paths: Iterable[Path]) -> frozenset[str]:
    """All names of files or folders: absolute, and with links resolved."""
    return frozenset(name for path in paths for name in (os.fspath(path.absolute()), os.path.realpath(path)))


async def _with_grace(check: Callable[[], Awaitable[list[Finding]]]) -> list[Finding]:
    """Runs a check until it finds no error, or the grace is over; returns what it found last."""
    retrying = AsyncRetrying(
        sleep=anyio.sleep,
        wait=wait_fixed(_LOOK_EVERY_S),
        stop=stop_after_delay(_GRACE_S),
        retry=retry_if_result(lambda found: any(finding.severity == "error" for finding in found)),
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else [],
    )
    found: list[Finding] = await retrying(check)
    return found
