"""What processes of the tree share by more than files and sockets: named shared memory, and GPUs. Pure functions."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from hooks.contract.findings import Finding
from supervisor.linux.files import DELETED

if TYPE_CHECKING:
    from hooks.contract.tree import Tree

__all__ = ["gpu_sharing", "shared_memory"]

_SHARED: Final = "/dev/shm/"  # noqa: S108  shm_open(3) and sem_open(3) make their files there
_GPU: Final = re.compile(r"/dev/nvidia\d+")
_UNIFIED: Final = "/dev/nvidia-uvm"  # held open by whoever has a CUDA context


def shared_memory(tree: Tree, *, whole_container: bool) -> list[Finding]:
    """No shared memory or semaphore that has a name, unless the snapshot holds the whole container with its /dev/shm.

    One that was unlinked since is memory of the processes alone, which every snapshot carries.
    """
    if whole_container:
        return []
    holders: dict[str, list[tuple[int, str, str]]] = {}
    for process in tree.processes:
        places = {line.path: (f"/proc/{process.pid}/maps line {line.number}", line.text) for line in process.mappings}
        places |= {held.target: (f"/proc/{process.pid}/fd/{held.fd}", held.target) for held in process.descriptors}
        for path, (where, line) in places.items():
            if path.startswith(_SHARED) and not path.endswith(DELETED):
                holders.setdefault(path, []).append((process.pid, where, line))
    found = []
    for path, uses in holders.items():
        pid, where, line = uses[0]
        others = ", ".join(str(other) for other, _, _ in uses[1:])
        shared = f" together with pid {others}" if others else ""
        found.append(
            Finding(
                check="shared-memory",
                pid=pid,
                what=f"uses the shared memory {path}{shared}, which is in no snapshot of processes alone",
                where=where,
                line=line,
                fix="snapshot the whole container, or have the server unlink it once all have opened it",
            )
        )
    return found


def gpu_sharing(tree: Tree) -> list[Finding]:
    """A warning where several processes have a CUDA context.

    Memory that they share, by CUDA IPC or NCCL's peer-to-peer, shows nowhere in /proc: the nodes of the devices are
    all that does. The driver's restore of two workers of tensor parallelism failed with driver 580 (seen on two H200).
    """
    users = []
    for process in tree.processes:
        held = {descriptor.target: descriptor.fd for descriptor in process.descriptors}
        card = next((target for target in held if _GPU.fullmatch(target)), None)
        if card and _UNIFIED in held:
            users.append((process.pid, card, held[card]))
    if len(users) < 2:
        return []
    pid, card, fd = users[0]
    others = ", ".join(str(other) for other, _, _ in users[1:])
    return [
        Finding(
            check="gpu-sharing",
            severity="warning",
            pid=pid,
            what=f"and pid {others} use GPUs; whether they share GPU memory (CUDA IPC, NCCL) cannot be seen",
            where=f"/proc/{pid}/fd/{fd}",
            line=card,
            fix="if they do, as with tensor parallelism, put the engine to sleep on its host instead of a snapshot: "
            "the driver restores no shared GPU memory",
        )
    ]
