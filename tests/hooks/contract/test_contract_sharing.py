"""What processes share: named memory stays behind when only they are saved; GPUs of several are warned of."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from hooks.contract.sharing import gpu_sharing, shared_memory
from hooks.contract.tree import Process, Tree, read_tree
from supervisor.linux import processes
from supervisor.linux.files import Descriptor, parse_maps
from tools.contract import profile, refused, sealed, serving
from tools.serve import child_at

SHM = Path("/dev/shm")  # noqa: S108
pytestmark = pytest.mark.skipif(not (processes.AVAILABLE and SHM.is_dir()), reason="there is no /dev/shm here")

HOLDER = """
import sys
from multiprocessing import Semaphore, shared_memory
memory = shared_memory.SharedMemory(create=True, size=4096)
semaphore = Semaphore()  # has a name in /dev/shm for a moment only
print(memory.name, flush=True)
sys.stdin.readline()
memory.unlink()
print("unlinked", flush=True)
sys.stdin.readline()
memory.close()
"""


@contextmanager
def holding() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process with a block of Python's shared memory; yields it, and where the block has its name."""
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", HOLDER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout
        block = SHM / process.stdout.readline().strip()
        try:
            yield process, block
        finally:
            with suppress(BrokenPipeError):
                process.stdin.write("\n\n")
                process.stdin.close()


def test_named_shared_memory_is_in_no_snapshot_of_processes_alone() -> None:
    """A block with a name is a finding unless the container goes along; once unlinked it is the processes' own."""
    with holding() as (process, block):
        child = child_at(1, pid=process.pid)
        tree = read_tree(child)
        assert shared_memory(tree, whole_container=True) == []
        (finding,) = shared_memory(tree, whole_container=False)
        assert (finding.check, finding.severity, finding.pid) == ("shared-memory", "error", process.pid)
        assert f"the shared memory {block}, which is in no snapshot" in finding.what
        assert str(block) in finding.line
        assert process.stdin
        assert process.stdout
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "unlinked\n"
        assert shared_memory(read_tree(child), whole_container=False) == []


def test_who_else_uses_the_memory_is_named() -> None:
    """One finding a block, whoever maps or holds it."""
    row = parse_maps("7f00-7f01 rw-s 0 00:1a 7   /dev/shm/psm_1")
    held = Descriptor(fd=9, target=f"{SHM}/psm_1", file=None, regular=True)
    gone = Descriptor(fd=8, target=f"{SHM}/sem.mp-x (deleted)", file=None, regular=True)
    tree = Tree(
        processes=(Process(pid=5, mappings=row, descriptors=(gone,)), Process(pid=6, descriptors=(held, gone))),
        files={},
    )
    (finding,) = shared_memory(tree, whole_container=False)
    assert finding.pid == 5
    assert "together with pid 6" in finding.what
    assert finding.where == "/proc/5/maps line 1"


@pytest.mark.anyio
async def test_a_seal_of_processes_alone_is_refused() -> None:
    """As a Step: whoever snapshots processes alone says so, and the seal is refused; a container is sealed."""
    block = SHM / f"warmboot-test-{os.getpid()}"
    block.write_bytes(b"x" * 5000)
    try:
        async with serving(profile("--map", str(block))) as (server, seen):
            await sealed(server, seen)
        async with serving(profile("--map", str(block)), whole_container=False) as (server, seen):
            finding = await refused(server, seen, "shared-memory")
            assert str(block) in finding.what
    finally:
        block.unlink()


def gpu_user(pid: int, *targets: str) -> Process:
    """A process that holds these nodes open."""
    return Process(
        pid=pid,
        descriptors=tuple(Descriptor(fd=fd, target=t, file=None, regular=False) for fd, t in enumerate(targets)),
    )


def test_gpus_of_several_processes_are_warned_of() -> None:
    """Shared GPU memory shows nowhere, so who has a CUDA context is what can be said; one process alone shares none."""
    worker = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia0")
    front = gpu_user(4, "/dev/nvidiactl", "/dev/null")  # has asked how many cards there are
    assert gpu_sharing(Tree(processes=(front, gpu_user(5, *worker)), files={})) == []
    (finding,) = gpu_sharing(Tree(processes=(front, gpu_user(5, *worker), gpu_user(6, *worker)), files={}))
    assert (finding.check, finding.severity, finding.pid) == ("gpu-sharing", "warning", 5)
    assert finding.where == "/proc/5/fd/2"
    assert "pid 6" in finding.what
