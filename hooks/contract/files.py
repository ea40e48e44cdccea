"""Which files the tree holds that a snapshot cannot carry: pure functions from a reading to findings."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final, Literal

from hooks.contract.findings import Finding
from supervisor.linux.files import DELETED

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from hooks.contract.tree import Process, Tree
    from supervisor.linux.files import Descriptor, FileId, MapLine

__all__ = ["io_uring", "remounted", "stale_files", "weights_mapped"]

IO_URING: Final = "anon_inode:[io_uring]"
# Shown as deleted files, and yet memory without a file: shm_open(3), memfd_create(2), shmget(2), shared and huge
# anonymous pages (CUDA's pinned memory too), aio(7), graphics drivers. And GPUs, whose nodes a container runtime makes
# anew: what is mapped of a device is no file's content.
_MEMORY: Final = (
    *("/memfd:", "/dev/shm/", "/SYSV", "/dev/zero", "/anon_hugepage", "/[aio]", "/drm mm object", "/i915"),  # noqa: S108
    *("anon_inode:", "/dev/nvidia"),
)

_MAPPED: Final = "mapped weights stay out of the snapshot and are read from whatever file is there after a restore"
_STALE: Final = (
    "restart the server after its files were replaced and seal then, or have it close what it deletes; "
    "the file's content is nowhere to be found after a restore"
)
_CLOSE: Final = "have the server close it before the seal, or name it in `allowed`; the file is another one elsewhere"
# libuv sets one up for epoll_ctl whatever UV_USE_IO_URING says (libuv's pull request 4638), and does without where the
# kernel refuses; both seen with uvloop 0.23.
_REFUSE: Final = (
    "or refuse it the system call io_uring_setup, by a container's seccomp profile or with sysctl "
    "kernel.io_uring_disabled=2: libuv then waits by epoll alone. UV_USE_IO_URING=0 does not help from libuv 1.50 on"
)
_KEEP: Final = "never replace it in place while snapshots of this server are in use, or name it in `allowed`"


def weights_mapped(tree: Tree, weights: Collection[str], no_mmap_hint: str) -> list[Finding]:
    """No file of the weights is mapped, whatever name it is mapped by.

    Args:
        tree: the reading.
        weights: all names of the weight files: absolute, and with links resolved.
        no_mmap_hint: how the engine is told to load its weights without mapping them.
    """
    files = {tree.files[name] for name in weights if name in tree.files}
    return [
        Finding(
            check="weights-mapped",
            pid=process.pid,
            what=f"maps the weight file {_name(line.path)}",
            where=_line_of(process, line),
            line=line.text,
            fix=f"{no_mmap_hint}; {_MAPPED}",
        )
        for process, line in _mapped(tree)
        # By what is at the path now as well: the device of a maps line is another one on some file systems.
        if not {line.path, line.path.removesuffix(DELETED)}.isdisjoint(weights)
        or not {line.file, tree.files.get(line.path)}.isdisjoint(files)
    ]


def stale_files(tree: Tree, allowed: Sequence[str] = ()) -> list[Finding]:
    """No file is mapped or open that was deleted or replaced since.

    A file that was replaced by a rename shows as deleted. One that was replaced out of the kernel's sight (by a network
    file system's server, or by a mount) is recognised by its inode: for mappings only where device and inode are what
    stat(2) says for other mapped files, and where the device is the same; overlayfs and btrfs differ there.
    """
    found = []
    truthful = any(line.file == tree.files.get(line.path) for _, line in _mapped(tree))
    for process, line in _mapped(tree):
        now = tree.files.get(line.path)
        state = _state(line.path, line.file, now)
        if state == "replaced" and not (truthful and now and now.device == line.file.device and line.file.inode):
            state = None
        if state and not _is_allowed(line.path, allowed):
            found.append(_stale(process, f"maps {_name(line.path)}", state, _line_of(process, line), line.text))
    for process in tree.processes:
        for held in process.descriptors:
            state = _state(held.target, held.file, tree.files.get(held.target)) if held.regular else None
            if state and not _is_allowed(held.target, allowed):
                does, where = f"holds {_name(held.target)} open", _fd_of(process, held)
                found.append(_stale(process, does, state, where, held.target))
    return found


def io_uring(tree: Tree, hint: str) -> list[Finding]:
    """No io_uring: the kernel's half of its rings is in no snapshot.

    Args:
        tree: the reading.
        hint: how the engine is told to do without.
    """
    shown = [
        (process, _fd_of(process, held), held.target)
        for process in tree.processes
        for held in process.descriptors
        if held.target == IO_URING
    ]
    shown += [(process, _line_of(process, line), line.text) for process, line in _mapped(tree, IO_URING)]
    return [
        Finding(
            check="io-uring",
            pid=process.pid,
            what=f"{f'({process.name}) ' if process.name else ''}uses io_uring, as event loops on libuv do (uvloop)",
            where=where,
            line=line,
            fix=f"{hint}; {_REFUSE}",
        )
        for process, where, line in shown
    ]


def remounted(tree: Tree, folders: Collection[str], weights: Collection[str], allowed: Sequence[str]) -> list[Finding]:
    """Below folders that are mounted anew elsewhere no file is open; one that is mapped is a warning.

    Args:
        tree: the reading.
        folders: absolute, and with links resolved.
        weights: names of files that `weights_mapped` judges.
        allowed: shell patterns of paths that may be open or mapped.
    """

    def concerns(path: str) -> bool:
        below = any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)
        return below and not _is_allowed(path, allowed)

    found = [
        Finding(
            check="remounted",
            pid=process.pid,
            what=f"holds {_name(held.target)} open, which is mounted anew after a restore",
            where=_fd_of(process, held),
            line=held.target,
            fix=_CLOSE,
        )
        for process in tree.processes
        for held in process.descriptors
        if held.regular and concerns(held.target)
    ]
    reported: set[str] = set()
    for process, line in _mapped(tree):
        if concerns(line.path) and line.path not in weights and line.path not in reported:
            reported.add(line.path)
            found.append(
                Finding(
                    check="remounted",
                    severity="warning",
                    pid=process.pid,
                    what=f"maps {_name(line.path)}, which is mounted anew after a restore",
                    where=_line_of(process, line),
                    line=line.text,
                    fix=_KEEP,
                )
            )
    return found


def _mapped(tree: Tree, prefix: str = "/") -> Iterator[tuple[Process, MapLine]]:
    """The first line of each file that a process maps."""
    for process in tree.processes:
        seen: set[tuple[str, FileId]] = set()
        for line in process.mappings:
            if line.path.startswith(prefix) and (line.path, line.file) not in seen:
                seen.add((line.path, line.file))
                yield process, line


def _state(path: str, file: FileId | None, now: FileId | None) -> Literal["deleted", "replaced"] | None:
    """What became of a file that a process has under that path, of which /proc shows `file` and stat(2) `now`."""
    if path.startswith(_MEMORY) or (file and file == now):
        return None
    if path.endswith(DELETED):
        # A file may have such a name: then it is there, and the same one.
        return None if now and file and now.inode == file.inode else "deleted"
    # Nothing at the path: the process lives in another mount namespace, and nothing can be said.
    return "replaced" if now and file else None


def _stale(process: Process, does: str, state: str, where: str, line: str) -> Finding:
    what = f"{does}, which was {state}"
    return Finding(check="stale-file", pid=process.pid, what=what, where=where, line=line, fix=_STALE)


def _is_allowed(path: str, allowed: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in (path, path.removesuffix(DELETED)) for pattern in allowed)


def _line_of(process: Process, line: MapLine) -> str:
    return f"/proc/{process.pid}/maps line {line.number}"


def _fd_of(process: Process, held: Descriptor) -> str:
    return f"/proc/{process.pid}/fd/{held.fd}"


def _name(path: str) -> str:
    return path.removesuffix(DELETED)
