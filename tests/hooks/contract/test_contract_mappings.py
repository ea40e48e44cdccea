"""What counts as a file that a snapshot cannot carry: pure functions of a reading of /proc."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from hooks.contract import files as contract_files
from hooks.contract.tree import Process, Tree
from supervisor.linux.files import Descriptor, FileId, parse_maps

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "path",
    [
        *("/memfd:pool (deleted)", "/dev/shm/nccl-X (deleted)", "/SYSV00000000 (deleted)", "/dev/zero (deleted)"),  # noqa: S108
        *("/anon_hugepage (deleted)", "/[aio] (deleted)", "anon_inode:[eventpoll]", "[heap]", ""),
    ],
)
def test_memory_is_no_file(path: str) -> None:
    """What is memory without a file, though it shows as deleted, is carried."""
    assert not contract_files.stale_files(reading(f"7f00-7f01 rw-s 0 00:01 7 {path}", files={}))


def reading(*lines: str, files: dict[str, FileId]) -> Tree:
    return Tree(processes=(Process(pid=5, mappings=parse_maps("\n".join(lines))),), files=files)


# llama-server b9940 with CUDA 13.0 on an H200, before a seal.
GPU_MAPS = """\
204a00000-204c00000 rw-s 204a00000 00:06 144                             /dev/nvidia-uvm
55b2fc368000-55b2fc54a000 r--p 00000000 fe:00 8120031                    /llama-build/b9940/llama-server
7f7c1c000000-7f7c26000000 r--p 00000000 fe:00 51200                      /usr/local/cuda/lib64/libcublasLt.so.13.1.0.3
7f99586b2000-7f99588b2000 rw-s 00000000 00:01 2086                       /dev/zero (deleted)
7f998b5e2000-7f998b5f2000 -w-s 00000000 00:06 143                        /dev/nvidia0
7f998b942000-7f998b943000 r--s 00000000 00:06 142                        /dev/nvidiactl"""
GPU_HOLDS = (
    *("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm", "/dev/nvidia0", "/dev/nvidia0", "/dev/null"),
    *("anon_inode:[eventfd]", "pipe:[4410]", "socket:[5001]"),  # @cuda-uvmfd-4026531836-442@, of the driver's own
)


@pytest.mark.parametrize("nodes", ["the same", "made anew", "gone"])
def test_a_gpu_is_no_file(nodes: str) -> None:
    """What a CUDA process maps and holds open of devices and pinned memory stands in no seal's way."""
    files = {"/llama-build/b9940/llama-server": FileId(os.makedev(0xFE, 0), 8120031)}
    if nodes != "gone":
        names = {"/dev/nvidiactl": 142, "/dev/nvidia0": 143, "/dev/nvidia-uvm": 144}
        files |= {name: FileId(6, inode + 100 * (nodes == "made anew")) for name, inode in names.items()}
    text = GPU_MAPS.replace("nvidiactl", "nvidiactl (deleted)") if nodes == "gone" else GPU_MAPS
    held = tuple(
        Descriptor(fd=fd, target=target, file=files.get(target), regular=False) for fd, target in enumerate(GPU_HOLDS)
    )
    tree = Tree(processes=(Process(pid=5, mappings=parse_maps(text), descriptors=held),), files=files)
    assert len(tree.processes[0].mappings) == 6
    allowed = ("/llama-build/*/llama-server", "/llama-build/*.so*")
    assert contract_files.stale_files(tree, allowed) == contract_files.io_uring(tree, "hint") == []
    assert contract_files.remounted(tree, {"/models", "/llama-build"}, {"/models/m.gguf"}, allowed) == []
    assert contract_files.weights_mapped(tree, {"/models/m.gguf"}, "") == []


def test_a_replacement_out_of_the_kernels_sight() -> None:
    """Another inode at a mapped path tells, but only where the kernel's device and inode are those of stat(2)."""
    disk, elsewhere = os.makedev(0xFE, 0), os.makedev(0, 40)
    good, other = "7f00-7f01 r-xp 0 fe:00 11 /lib/a", "7f02-7f03 r-xp 0 fe:00 12 /lib/b"
    files = {"/lib/a": FileId(disk, 11), "/lib/b": FileId(disk, 99)}
    (finding,) = contract_files.stale_files(reading(good, other, files=files))
    assert "/lib/b, which was replaced" in finding.what
    assert finding.where == "/proc/5/maps line 2"
    # Another device, as overlayfs and btrfs show; no inode; inodes that never agree; another mount namespace.
    assert not contract_files.stale_files(reading(good, other, files=files | {"/lib/b": FileId(elsewhere, 99)}))
    assert not contract_files.stale_files(reading(good, other.replace(" 12 ", " 0 "), files=files))
    assert not contract_files.stale_files(reading(good, other, files=files | {"/lib/a": FileId(disk, 98)}))
    assert not contract_files.stale_files(reading(good, other, files={"/lib/a": FileId(disk, 11)}))


def test_names_that_look_deleted_on_another_device() -> None:
    """Where the kernel shows another device than stat(2), the inode tells a file `x (deleted)` from a deleted `x`."""
    row, path = "7f00-7f01 r--p 0 fe:00 11 /m/x (deleted)", "/m/x (deleted)"
    overlay = os.makedev(0, 40)
    assert not contract_files.stale_files(reading(row, files={path: FileId(overlay, 11)}))
    (finding,) = contract_files.stale_files(reading(row, files={path: FileId(overlay, 12)}))
    assert "/m/x, which was deleted" in finding.what


def test_what_counts_below_a_remounted_folder() -> None:
    """Regular files count, and each mapped one once; weights have a check of their own; a neighbour is not below."""
    rows = parse_maps(
        "7f00-7f01 r-xp 0 fe:00 11 /data/lib.so\n7f02-7f03 r--p 0 fe:00 11 /data/lib.so\n"
        "7f04-7f05 r--p 0 fe:00 12 /data/m.gguf\n7f06-7f07 r--p 0 fe:00 13 /database"
    )
    held = Descriptor(fd=3, target="/data/queue", file=None, regular=False)
    open_file = replace(held, fd=4, target="/data/log", regular=True)
    both = Tree(
        processes=(Process(pid=5, mappings=rows, descriptors=(held, open_file)), Process(pid=6, mappings=rows)),
        files={},
    )
    found = contract_files.remounted(both, {"/data"}, {"/data/m.gguf"}, ())
    assert [(finding.severity, finding.where) for finding in found] == [
        ("error", "/proc/5/fd/4"),
        ("warning", "/proc/5/maps line 1"),
    ]
