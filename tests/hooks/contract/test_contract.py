"""The snapshot contract: every breach provoked on a live child, refused, cured, and then sealed."""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hooks.contract import ContractBroken, ContractUnseen, Finding, SnapshotContract, tree
from hooks.contract import files as contract_files
from hooks.contract import requests as contract_requests
from hooks.contract import step as contract
from hooks.contract.environment import command, environment, stray_secrets
from hooks.contract.requests import read_load
from hooks.contract.tree import Process, Tree
from hooks.warmup.steps import Text
from supervisor import Daemon, Hooks, Secret, State, Supervised, supervise
from supervisor.child import Child
from supervisor.dialect import Dialect
from supervisor.engines import embedded
from supervisor.engines.llama_cpp.dialect import busy_slots
from supervisor.errors import ProfileError, StepFailed
from supervisor.linux import processes
from supervisor.linux.files import Descriptor, FileId, descriptors, maps, parse_maps
from supervisor.profile import Profile
from support import FAKE, ROOT, fake_profile, free_port, is_in
from tools.serve import child_at, running_raw

pytestmark = pytest.mark.anyio

SERVER = (sys.executable, "-I", "-S", str(FAKE), "--port", "{port}")
IO_URING_SETUP = 425

# A server in few lines, after what a test puts before it.
HTTP = """
import socket, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        found = self.path == "/health"
        self.send_response(200 if found else 404); self.send_header("Content-Length", "0"); self.end_headers()
    def log_message(self, *_): pass
class Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6 if ":" in sys.argv[2] else socket.AF_INET
Server((sys.argv[2], int(sys.argv[1])), Answer).serve_forever()
"""


def http(before: str = "") -> tuple[str, ...]:
    """Its command."""
    return (sys.executable, "-c", before + HTTP, "{port}", "{host}")


def profile(*flags: str, **fields: Any) -> Profile:
    """The fake with a clean environment, whatever this machine's holds."""
    return fake_profile(*flags, **({"inherit_env": ("PATH", "LANG")} | fields))


class Findings(list[Finding]):
    """The findings of the last run."""

    def __call__(self, findings: tuple[Finding, ...]) -> None:
        self[:] = findings


@asynccontextmanager
async def serving(what: Profile, **settings: Any) -> AsyncIterator[tuple[Supervised, Findings]]:
    """A READY server whose seal is guarded by the contract."""
    seen = Findings()
    step = SnapshotContract(on_findings=seen, **settings)
    async with anyio.create_task_group() as tasks:
        server = await tasks.start(supervise, what, Hooks(before_seal=(step,)))
        yield server, seen
        tasks.cancel_scope.cancel()


async def refused(server: Supervised, seen: Findings, check: str) -> Finding:
    """The only finding of a seal that is refused for it; the server is still READY."""
    with pytest.raises(StepFailed) as caught:
        await server.seal()
    assert (caught.value.point, caught.value.step) == ("before_seal", "contract")
    assert is_in(server, State.READY)
    (finding,) = seen
    assert (finding.check, finding.severity) == (check, "error")
    # The message alone is enough to act upon.
    for part in (check, f"pid {finding.pid}", finding.where, finding.fix):
        assert part in str(caught.value)
    return finding


async def sealed(server: Supervised, seen: Findings) -> None:
    """Seals, with nothing found."""
    await server.seal()
    assert is_in(server, State.SEALED)
    assert seen == []


async def until_let_go(path: Path, pid: int | None, *names: Path) -> None:
    """Tells the fake to let go, and waits until it has."""
    path.touch()
    assert pid
    held = {str(name) for name in names}
    with anyio.fail_after(20):
        while held & {d.target.removesuffix(" (deleted)") for d in descriptors(pid) or ()} or held & {
            line.path.removesuffix(" (deleted)") for line in maps(pid) or ()
        }:
            await anyio.sleep(0.005)


# The whole


async def test_a_sound_server_is_sealed() -> None:
    """A server that holds nothing but its listener, its log pipes and its program is sealed, and nothing is found."""
    async with serving(profile("--model", __file__, "--read-model", weights=(Path(__file__),))) as (server, seen):
        await sealed(server, seen)


@pytest.mark.engine
def test_mapped_weights_of_a_real_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp with mmap is refused, and the error shows the line of the weights; without mmap it is sealed."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    seen = Findings()
    step = SnapshotContract(on_findings=seen)
    steps = Hooks(before_start=(embedded.AssembleModel(),), warmup=(Text(),), before_seal=(step,))
    with Daemon(embedded.profile(slots=1, load="mmap"), steps) as daemon:
        with pytest.raises(StepFailed) as caught:
            daemon.seal()
        assert is_in(daemon, State.READY)
        lines = Path(f"/proc/{daemon.supervised.pid}/maps").read_text().splitlines()
    finding = next(finding for finding in seen if finding.check == "weights-mapped")
    assert finding.pid == daemon.supervised.pid
    assert finding.line.endswith(str(embedded.model_path()))
    assert lines[int(finding.where.rpartition(" ")[2]) - 1] == finding.line
    assert finding.where in str(caught.value)
    assert 'LlamaServer(load="no-mmap")' in str(caught.value)
    assert {finding.check for finding in seen if finding.severity == "error"} == {"weights-mapped"}
    with Daemon(embedded.profile(slots=1, load="no-mmap"), steps) as daemon:
        daemon.seal()
        assert is_in(daemon, State.SEALED)
    assert seen == []


async def test_no_proc_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing can be looked at nothing is passed: no /proc, no child, a process of which /proc tells nothing."""
    child = child_at(1, pid=None)
    with pytest.raises(ContractUnseen, match="no child yet"):
        await SnapshotContract()(child)
    with pytest.raises(ContractUnseen, match="no process of pid 1073741824"):
        await SnapshotContract()(replace(child, pid=1 << 30))
    async with serving(profile()) as (server, _):
        with monkeypatch.context() as patched:
            patched.setattr(processes, "AVAILABLE", False)
            with pytest.raises(StepFailed, match="read from Linux's /proc, and there is none here"):
                await server.seal()
        for name in ("maps", "descriptors"):
            with monkeypatch.context() as patched:
                patched.setattr(tree, name, lambda _: None)
                with pytest.raises(StepFailed, match="may not be read: run the supervisor as"):
                    await server.seal()
        await server.seal()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"waive": ("weights-maped",)}, r"contract\.waive='weights-maped' is not valid: it must be of weights-mapped,"),
        ({"waive": "connection"}, r"contract\.waive='connection' is not valid: it must be a tuple"),
        ({"remounted": (Path("models"),)}, r"contract\.remounted=.* absolute paths"),
        ({"remounted": ("/models",)}, r"contract\.remounted=.* absolute paths"),
        ({"allowed": ("",)}, r"contract\.allowed='' .* shell patterns"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    """A wrong setting is told at construction."""
    with pytest.raises(ProfileError, match=message):
        SnapshotContract(**settings)


async def test_a_waived_check_warns(tmp_path: Path) -> None:
    """What is waived is found all the same, as a warning, and does not refuse the seal."""
    path = tmp_path / "log"
    path.touch()
    async with serving(profile("--hold-open", str(path), "--unlink-open"), waive=("stale-file",)) as (server, seen):
        await server.seal()
    (finding,) = seen
    assert (finding.check, finding.severity) == ("stale-file", "warning")


async def test_findings_are_redacted(tmp_path: Path) -> None:
    """A key that stands in a path is in no finding."""
    path = tmp_path / "made-up-key-1234"
    path.write_text("x")
    what = profile("--hold-open", str(path), "--unlink-open", api_key=Secret("made-up-key-1234"))
    async with serving(what) as (server, seen):
        finding = await refused(server, seen, "stale-file")
    assert "made-up" not in repr(finding)
    assert "***" in finding.what and "***" in finding.line


def test_the_error_has_a_line_for_each_finding() -> None:
    """One line a finding, whatever stands in a path; warnings say that they are."""
    finding = Finding(check="stale-file", pid=7, what="w", where="/proc/7/fd/1", line="/a\nb", fix="f")
    text = str(ContractBroken((finding, replace(finding, severity="warning"))))
    assert text.splitlines() == [
        "the snapshot contract is broken:",
        "    stale-file: pid 7 w (/proc/7/fd/1: /a b); f",
        "    warning, stale-file: pid 7 w (/proc/7/fd/1: /a b); f",
    ]


# Files


@pytest.mark.parametrize("alias", ["itself", "hard link", "symbolic link", "deleted"])
async def test_mapped_weights(tmp_path: Path, alias: str) -> None:
    """A weight file is known by whatever name it is mapped; letting go of it cures the refusal."""
    weights, name, done = tmp_path / "model.gguf", tmp_path / "model.gguf", tmp_path / "done"
    weights.write_bytes(b"x" * 10_000)
    if alias.endswith("link"):
        name = tmp_path / "alias"
        (name.hardlink_to if alias == "hard link" else name.symlink_to)(weights)
    async with serving(profile("--map", str(name), "--let-go", str(done), weights=(weights,))) as (server, seen):
        if alias == "deleted":
            weights.unlink()
            with pytest.raises(StepFailed):
                await server.seal()
            assert [finding.check for finding in seen] == ["weights-mapped", "stale-file"]
        else:
            finding = await refused(server, seen, "weights-mapped")
            assert (finding.pid, finding.line.split()[-1]) == (
                server.pid,
                str(weights if alias == "symbolic link" else name),
            )
        await until_let_go(done, server.pid, name, weights)
        await sealed(server, seen)


async def test_weights_that_are_a_link(tmp_path: Path) -> None:
    """A profile that names a link to its weights, as hub caches have them, means the file behind it."""
    blob, link = tmp_path / "blob", tmp_path / "model.gguf"
    blob.write_bytes(b"x" * 10_000)
    link.symlink_to(blob)
    async with serving(profile("--map", str(link), weights=(link,))) as (server, seen):
        finding = await refused(server, seen, "weights-mapped")
        assert str(blob) in finding.what
        blob.unlink()
        with pytest.raises(StepFailed):
            await server.seal()
        assert "weights-mapped" in {finding.check for finding in seen}


async def test_a_deleted_file_that_is_open(tmp_path: Path) -> None:
    """A file without a name is nowhere after a restore; closed, it is no obstacle; allowed, neither."""
    path, done = tmp_path / "scratch", tmp_path / "done"
    path.write_text("x")
    what = profile("--hold-open", str(path), "--unlink-open", "--let-go", str(done))
    async with serving(what) as (server, seen):
        finding = await refused(server, seen, "stale-file")
        assert finding.line == f"{path} (deleted)"
        assert f"{path} open, which was deleted" in finding.what
        assert os.readlink(finding.where) == finding.line
        await until_let_go(done, server.pid, path)
        await sealed(server, seen)
    path.write_text("x")
    done.unlink()
    async with serving(what, allowed=(f"{tmp_path}/scr*",)) as (server, seen):
        await sealed(server, seen)


async def test_a_mapped_file_that_was_replaced(tmp_path: Path) -> None:
    """A file that a rename has put another one in the place of is still the old one to those who map it."""
    path, done = tmp_path / "libfast.so", tmp_path / "done"
    path.write_bytes(b"old")
    async with serving(profile("--map", str(path), "--let-go", str(done))) as (server, seen):
        await sealed(server, seen)
        await server.resume()
        (tmp_path / "new").write_bytes(b"new")
        (tmp_path / "new").replace(path)
        finding = await refused(server, seen, "stale-file")
        assert finding.where.startswith(f"/proc/{server.pid}/maps line ")
        assert str(path) in finding.line
        await until_let_go(done, server.pid, path)
        await sealed(server, seen)


async def test_names_that_only_look_deleted(tmp_path: Path) -> None:
    """A file may be called `x (deleted)`, and hold a space and a line break in its name, and is not deleted."""
    path, done = tmp_path / "a b\nc (deleted)", tmp_path / "done"
    path.write_bytes(b"x" * 5000)
    what = profile("--map", str(path), "--hold-open", str(path), "--let-go", str(done))
    async with serving(what) as (server, seen):
        await sealed(server, seen)
        await server.resume()
        path.unlink()
        with pytest.raises(StepFailed):
            await server.seal()
        assert [finding.check for finding in seen] == ["stale-file", "stale-file"]
        path.write_bytes(b"another one under the same name")
        with pytest.raises(StepFailed):
            await server.seal()


async def test_a_member_that_left_the_session(tmp_path: Path) -> None:
    """The tree is the whole tree: what a descendant behind setsid(1) holds is found, with its pid."""
    path = tmp_path / "scratch"
    path.write_text("x")
    command = ("setsid", "-w", *SERVER, "--hold-open", str(path), "--unlink-open")
    async with serving(profile(command=command)) as (server, seen):
        finding = await refused(server, seen, "stale-file")
        assert finding.pid != server.pid
        assert Path(f"/proc/{finding.pid}/cmdline").read_bytes().endswith(b"--unlink-open\0")


async def test_remounted_files(tmp_path: Path) -> None:
    """Below a remounted folder an open file refuses, a mapped one warns once, a weight is not told twice."""
    volume, link, done = tmp_path / "volume", tmp_path / "link", tmp_path / "done"
    volume.mkdir()
    link.symlink_to(volume)
    library, table, beside = volume / "lib.so", volume / "table.bin", tmp_path / "volume.txt"
    for path in (library, table, beside):
        path.write_bytes(b"x" * 5000)
    # Python's mmap keeps a descriptor of its own, so the library is mapped by the loader of a real one.
    library.write_bytes(Path(mapped_library()).read_bytes())
    command = http(f"import ctypes\nctypes.CDLL({str(library)!r})\n")
    async with serving(profile(command=command), remounted=(link,)) as (server, seen):
        await server.seal()
        (finding,) = seen
        assert (finding.check, finding.severity) == ("remounted", "warning")
        assert str(library) in finding.line
    async with serving(profile(command=command), remounted=(link,), allowed=("*/lib.so",)) as (server, seen):
        await sealed(server, seen)
    flags = ("--hold-open", f"{table},{beside}", "--let-go", str(done))
    async with serving(profile(*flags), remounted=(link,)) as (server, seen):
        finding = await refused(server, seen, "remounted")
        assert os.readlink(finding.where) == finding.line == str(table)
        await until_let_go(done, server.pid, table, beside)
        await sealed(server, seen)


def mapped_library() -> str:
    """A shared library of this machine that is small."""
    paths = {line.path for line in maps(os.getpid()) or () if ".so" in line.path and line.path.startswith("/")}
    return min(paths, key=lambda path: Path(path).stat().st_size)


async def test_io_uring() -> None:
    """A server that set up an io_uring is refused; where this kernel allows none, the reading is made by hand."""
    ring = ctypes.CDLL(None).syscall(IO_URING_SETUP, 4, ctypes.create_string_buffer(256))
    if ring >= 0:
        os.close(ring)
        async with serving(profile("--io-uring")) as (server, seen):
            finding = await refused(server, seen, "io-uring")
            assert os.readlink(finding.where) == "anon_inode:[io_uring]"
    held = Descriptor(fd=9, target="anon_inode:[io_uring]", file=None, regular=False)
    row = parse_maps("7f00-7f01 rw-s 10000000 00:0f 1057                       anon_inode:[io_uring]")
    for process in (Process(pid=5, descriptors=(held,)), Process(pid=5, mappings=row)):
        (finding,) = contract_files.io_uring(Tree(processes=(process,), files={}))
        assert finding.where.startswith("/proc/5/")
    assert not contract_files.io_uring(
        Tree(processes=(Process(pid=5, descriptors=(replace(held, target="x"),)),), files={})
    )


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
    assert contract_files.stale_files(tree, allowed) == contract_files.io_uring(tree) == []
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


# Connections and requests


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_client_that_stays_connected(host: str) -> None:
    """An open client connection refuses the seal, over IPv4 and IPv6, and says who is connected to what."""
    async with serving(profile(command=http(), host=host)) as (server, seen):
        with socket.create_connection((host, server.child.port)) as client:
            # Answered, and so accepted: a connection that is not yet is told in other words.
            client.sendall(b"GET /health HTTP/1.1\r\n\r\n")
            assert client.recv(1)
            finding = await refused(server, seen, "connection")
            assert finding.pid == server.pid
            assert f":{client.getsockname()[1]}, which is outside" in finding.what
            assert f":{server.child.port} -> " in finding.line
            assert finding.where.startswith(f"/proc/{server.pid}/net/tcp")
            assert os.readlink(f"/proc/{server.pid}/fd/{finding.where.split()[-1]}").startswith("socket:[")
        await sealed(server, seen)


async def test_a_connection_that_nobody_has_accepted() -> None:
    """A client in the listener's queue is connected too, though no process holds that connection yet."""
    port = free_port()
    command = http(f"import socket\nqueue = socket.create_server(('127.0.0.1', {port}))\n")
    async with serving(profile(command=command)) as (server, seen):
        with socket.create_connection(("127.0.0.1", port)):
            finding = await refused(server, seen, "connection")
            assert "has not accepted that connection yet" in finding.what
        await sealed(server, seen)


async def test_connections_inside_of_the_tree() -> None:
    """Members may be connected to each other: both ends are in the snapshot; also one that is not accepted yet."""
    program = (
        "import os, socket, sys, time\n"
        "door = socket.create_server(('127.0.0.1', 0))\n"
        "if not os.fork():\n"
        "    mine = [socket.create_connection(door.getsockname()) for _ in range(2)]\n"
        "    door.close()\n"
        "    time.sleep(1000)\n"
        "peer, _ = door.accept()\n"
    )
    async with serving(profile(command=http(program))) as (server, seen):
        await sealed(server, seen)


async def test_a_grace_for_what_is_closing() -> None:
    """What is gone a moment later is no finding; what stays is."""
    finding = Finding(check="connection", pid=1, what="w", where="x", fix="f")
    answers = [[finding], [finding], []]

    async def look() -> list[Finding]:
        return answers.pop(0)

    async def stays() -> list[Finding]:
        return [finding]

    assert await contract._with_grace(look) == []
    assert await contract._with_grace(stays) == [finding]


async def test_a_request_in_flight(tmp_path: Path) -> None:
    """A completion that the server works on refuses the seal; once it is answered, the seal succeeds."""
    gate = tmp_path / "gate"
    async with (
        serving(profile("--gate", str(gate), "--parallel", "2")) as (server, seen),
        server.child.client() as client,
    ):
        body = {"messages": [{"role": "user", "content": "Hi"}]}
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: client.post("/v1/chat/completions", json=body, headers={"Connection": "close"}))
            while not busy_slots((await client.get("/slots", headers={"Connection": "close"})).text):
                await anyio.sleep(0.005)
            with pytest.raises(StepFailed) as caught:
                await server.seal()
            assert [finding.check for finding in seen] == ["in-flight", "connection"]
            assert seen[0].where == f"{server.url}/slots"
            assert "works on 1 request (" in str(caught.value)
            assert is_in(server, State.READY)
            gate.touch()
        await sealed(server, seen)


async def test_a_server_that_one_client_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single-threaded server that waits for an idle client answers nobody: both are told, and the seal is refused."""
    monkeypatch.setattr(contract_requests, "_ANSWER_S", 0.2)
    command = http("import http.server\nhttp.server.ThreadingHTTPServer = http.server.HTTPServer\n")
    async with serving(profile(command=command)) as (server, seen):
        with socket.create_connection((server.child.host, server.child.port)) as client:
            client.sendall(b"GET /health HTTP/1.1\r\n\r\n")
            assert client.recv(1)
            with pytest.raises(StepFailed, match="does not say whether it is at work"):
                await server.seal()
            assert {finding.check for finding in seen} == {"in-flight", "connection"}
            assert is_in(server, State.READY)
        await server.seal()


@pytest.mark.parametrize("status", [404, 401, 501])
async def test_a_server_without_slots(status: int) -> None:
    """Where there are no slots the gauges count, and where there are none either, nothing is known."""
    pages = {"/metrics": "llamacpp:requests_processing 2\n"}

    def answer(head: str) -> bytes:
        page = pages.get(head.split()[1])
        line, text = ("200 OK", page) if page else (f"{status} No", '[{"id": 0, "is_processing": true}]')
        return f"HTTP/1.1 {line}\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n{text}".encode()

    with running_raw(answer) as child:
        load = await read_load(child)
        assert load and (load.requests, load.where) == (2, f"{child.url}/metrics")
        pages.clear()
        assert await read_load(child) is None


async def test_an_engine_that_counts_nothing_is_not_asked() -> None:
    """Without readings in the dialect no route is guessed at, and nothing is known of requests."""
    asked: list[str] = []

    def answer(head: str) -> bytes:
        asked.append(head)
        return b"HTTP/1.1 200 OK\r\n\r\n[]"

    with running_raw(answer) as child:
        assert await read_load(replace(child, profile=replace(child.profile, dialect=Dialect()))) is None
    assert not asked


# Command and environment


async def test_a_wrapper_is_told(tmp_path: Path) -> None:
    """A command that became another one is a warning, with keys masked; a script's interpreter in front is none."""
    wrapper, tool = tmp_path / "wrapper", tmp_path / "server"
    wrapper.write_text(f"exec {' '.join(SERVER[:-1])} $1 --api-key made-up-key-1234")
    async with serving(profile(command=("sh", str(wrapper), "{port}"))) as (server, seen):
        await server.seal()
        (finding,) = seen
        assert (finding.check, finding.severity) == ("command", "warning")
        assert str(FAKE) in finding.line
        assert "made-up" not in finding.line
    tool.write_text(f"#!{sys.executable} -IS\nimport runpy\nrunpy.run_path({str(FAKE)!r}, run_name='__main__')\n")
    tool.chmod(0o755)
    async with serving(profile(command=(str(tool), "--port", "{port}"))) as (server, seen):
        await sealed(server, seen)


def test_commands_that_differ() -> None:
    """A program without arguments is not everything's ending, and another argument is seen."""
    child = child_at(9)
    assert not command(child, child.argv, 5)
    assert not command(child, ("/usr/bin/interpreter", *child.argv), 5)
    assert command(child, (*child.argv, "--more"), 5)
    assert command(child, (), 5)
    bare = replace(child, profile=replace(child.profile, command=("server",), port=9))
    assert command(bare, ("another",), 5)
    assert command(bare, (), 5)
    assert not command(bare, ("server",), 5)


@pytest.mark.parametrize("change", [("-u", "WANTED"), ("WANTED=changed-value",), ("-u", "THE_KEY"), ("-i",)])
async def test_variables_that_a_wrapper_changed(change: tuple[str, ...]) -> None:
    """A variable of the profile that is lost or changed refuses the seal, by name, and never with its value."""
    what = profile(
        command=("env", *change, *SERVER),
        env={"WANTED": "on {port}"},
        api_key=Secret("made-up-key-1234"),
        api_key_env="THE_KEY",
    )
    async with serving(what) as (server, seen):
        with pytest.raises(StepFailed) as caught:
            await server.seal()
        assert is_in(server, State.READY)
        errors = [finding for finding in seen if finding.severity == "error"]
        names = ["WANTED", "THE_KEY"] if change == ("-i",) else ["THE_KEY" if "THE_KEY" in change else "WANTED"]
        assert [(finding.check, finding.what.split()[-1]) for finding in errors] == [("environment", n) for n in names]
        assert not any(value in str(caught.value) for value in ("on 1", "on {", "changed-value", "made-up"))
    async with serving(replace(what, command=SERVER)) as (server, seen):
        await sealed(server, seen)


async def test_variables_that_were_written_over() -> None:
    """A server that sets its title writes over the memory of its variables: that is a warning, not a missing key."""
    program = (
        "import ctypes\n"
        "first = ctypes.POINTER(ctypes.c_void_p).in_dll(ctypes.CDLL(None), 'environ')[0]\n"
        "ctypes.memset(first, 0, len(open('/proc/self/environ', 'rb').read()) - 1)\n"
    )
    what = profile(command=http(program), env={"WANTED": "yes"})
    async with serving(what) as (server, seen):
        await server.seal()
        assert [(finding.check, finding.severity) for finding in seen] == [("environment", "warning")]


async def test_a_secret_that_slipped_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret of the host refuses the seal, by its name alone; narrowed, or named in the profile, it does not."""
    monkeypatch.setenv("MADE_UP_TOKEN", "made-up-value")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("BLANK_TOKEN", "")
    inherited = ("PATH", "MADE_UP_*", "TOKENIZERS_*", "BLANK_*")
    async with serving(profile(inherit_env=inherited)) as (server, seen):
        finding = await refused(server, seen, "stray-secret")
        assert "MADE_UP_TOKEN" in finding.what
        assert "made-up-value" not in str(finding)
    for what in (profile(), profile(inherit_env=inherited, env={"MADE_UP_TOKEN": Secret("made-up-value")})):
        async with serving(what) as (server, seen):
            await sealed(server, seen)


def test_the_profiles_own_key_is_meant() -> None:
    """The variable that carries the profile's key is no stray."""
    child = child_at(9)
    child = replace(child, profile=replace(child.profile, api_key_env="SERVER_API_KEY"))
    assert child.profile.api_key
    seen = {"SERVER_API_KEY": child.profile.api_key.reveal()}
    assert not environment(child, seen, 5)
    assert not stray_secrets(child, seen, 5)
    assert stray_secrets(child, {"OTHER_API_KEY": "x"}, 5)


def test_the_argv_of_a_life() -> None:
    """A life's command has its host and port filled in; before a port is chosen, its place stays."""
    what = Profile(name="x", command=("s", "--at", "{host}:{port}", '{"a": {}}'), host="0.0.0.0")
    child = Child(profile=what, port=81, pid=None, redact=child_at(1).redact)
    assert child.argv == ("s", "--at", "0.0.0.0:81", '{"a": {}}')
    assert replace(child, port=0).argv[2] == "0.0.0.0:{port}"


# The parser


@pytest.mark.parametrize(
    ("line", "path", "inode"),
    [
        ("7ffe0000-7ffe1000 rw-p 00000000 00:00 0 ", "", 0),
        ("7ffe0000-7ffe1000 rw-p 00000000 00:00 0", "", 0),
        ("7ffe0000-7ffe1000 rw-p 00000000 00:00 0                          [stack]", "[stack]", 0),
        ("08048000-08049000 r-xp 00001000 fe:01 42                         /bin/x", "/bin/x", 42),
        ("08048000-08049000 r--s 00001000 103:02 42     /m/a b (deleted)", "/m/a b (deleted)", 42),
        ("08048000-08049000 r--s 00001000 00:2a 18446744073709551615 /m/  two", "/m/  two", 18446744073709551615),
        ("08048000-08049000 r--s 00001000 00:2a 7 /m/line\\012break", "/m/line\nbreak", 7),
        ("08048000-08049000 r--s 00001000 00:2a 7 /m/carriage\rreturn\x85", "/m/carriage\rreturn\x85", 7),
        ("ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]", "[vsyscall]", 0),
    ],
)
def test_maps_lines(line: str, path: str, inode: int) -> None:
    """Lines as kernels write them, with and without a path, whatever the path holds."""
    (found,) = parse_maps(f"{line}\n")
    assert (found.path, found.file.inode, found.text, found.number) == (path, inode, line, 1)


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0\\")), min_size=1, max_size=4))
def test_maps_of_any_path(names: list[str]) -> None:
    """Every path comes back as it was written, and every line has its number."""
    lines = [f"{i:08x}-{i + 1:08x} r--p 00000000 fe:00 {i:<26} /{name}" for i, name in enumerate(names)]
    found = parse_maps("".join(line.replace("\n", "\\012") + "\n" for line in lines))
    assert [line.path for line in found] == [f"/{name}" for name in names]
    assert [line.number for line in found] == list(range(1, len(names) + 1))
    assert {line.file.device for line in found} == {os.makedev(0xFE, 0)}


def test_lines_that_do_not_read_are_left_out() -> None:
    """An odd line hides no other."""
    found = parse_maps("odd\n\n08048000-08049000 r-xp 0 fe:01 42 /bin/x\n")
    assert [(line.number, line.path) for line in found] == [(3, "/bin/x")]


def test_our_own_maps(tmp_path: Path) -> None:
    """The kernel's own words are understood: a file with an odd name is found under it, and is the file on the disk."""
    path = tmp_path / "a b\tc\n\\d é (deleted)"
    path.write_bytes(b"x" * 5000)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        lines = maps(os.getpid())
        assert lines is not None
        (line,) = [line for line in lines if line.path == str(path)]
        assert line.file.inode == path.stat().st_ino
        assert len(lines) == lines[-1].number
