"""Files that a snapshot cannot carry: each provoked on a live child, refused, cured, and then sealed."""

from __future__ import annotations

import ctypes
import os
from dataclasses import replace
from pathlib import Path

import pytest

from hooks.contract import files as contract_files
from hooks.contract.tree import Process, Tree
from supervisor.errors import StepFailed
from supervisor.linux.files import Descriptor, maps, parse_maps
from tools.contract import SERVER, http, profile, refused, sealed, serving, until_let_go

pytestmark = pytest.mark.anyio

IO_URING_SETUP = 425


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
            assert finding.what.startswith(f"({Path(f'/proc/{finding.pid}/comm').read_text().strip()}) uses io_uring")
            assert "uvicorn --loop asyncio" in finding.fix  # of an engine that says nothing else
            assert "kernel.io_uring_disabled=2" in finding.fix
    held = Descriptor(fd=9, target="anon_inode:[io_uring]", file=None, regular=False)
    row = parse_maps("7f00-7f01 rw-s 10000000 00:0f 1057                       anon_inode:[io_uring]")
    for process in (Process(pid=5, descriptors=(held,)), Process(pid=5, mappings=row)):
        (finding,) = contract_files.io_uring(Tree(processes=(process,), files={}), "hint")
        assert finding.where.startswith("/proc/5/")
    assert not contract_files.io_uring(
        Tree(processes=(Process(pid=5, descriptors=(replace(held, target="x"),)),), files={}), "hint"
    )
