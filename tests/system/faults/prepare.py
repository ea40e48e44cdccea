"""What is done to a row's folder before it is played, and what a process does to itself."""

from __future__ import annotations

import os
import resource
import stat
import struct
from pathlib import Path

from hooks.artifacts.marker import MARKER, Marker


def become_nobody(_: Path) -> None:
    """Becomes a user without rights; without root's, that is what we are already."""
    # The interpreter and this checkout may be in root's home: what is imported late must be there before.
    import encodings.idna  # noqa: F401

    import anyio._backends._asyncio  # noqa: F401
    import httpx
    import structlog  # noqa: F401

    httpx.AsyncClient(trust_env=False)  # which imports its transport
    if os.geteuid() == 0:
        uid = 60_000 + os.getpid() % 5000  # RLIMIT_NPROC counts by user
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)


def whole_model(tmp: Path) -> None:
    """A model that is whole, and says so in a marker."""
    from fakes.gguf_files import write_gguf  # here, because it imports numpy

    write_gguf(tmp / "model.gguf")
    Marker.of(tmp, ("model.gguf",), repo="some/repo", revision="main").save(tmp)


def lost_model(tmp: Path) -> None:
    whole_model(tmp)
    (tmp / "model.gguf").unlink()


def cut_model(tmp: Path) -> None:
    whole_model(tmp)
    os.truncate(tmp / "model.gguf", (tmp / "model.gguf").stat().st_size - 400)
    (tmp / MARKER).unlink()
    Marker.of(tmp, ("model.gguf",), repo="some/repo", revision="main").save(tmp)  # the marker believes it


def closed_model(tmp: Path) -> None:
    whole_model(tmp)
    (tmp / "model.gguf").chmod(0)


def foreign_binary(tmp: Path) -> None:
    ident = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    head = struct.pack("<HHIQQQIHHHHHH", 2, 0xFEED, 1, 0x400078, 64, 0, 0, 64, 56, 1, 0, 0, 0)  # no such machine
    (tmp / "server").write_bytes((ident + head).ljust(4096, b"\0"))
    (tmp / "server").chmod(0o755)


def plain_file(tmp: Path) -> None:
    (tmp / "server").write_text("#!/bin/sh\n")
    (tmp / "server").chmod(stat.S_IRUSR | stat.S_IWUSR)


def script_without_interpreter(tmp: Path) -> None:
    (tmp / "server").write_text("#!/no/such/interpreter\n")
    (tmp / "server").chmod(0o755)


def some_weights(tmp: Path) -> None:
    (tmp / "weights").write_bytes(b"\0" * 4_000_000)


def without_threads(tmp: Path) -> None:
    """Becomes a user who may start no thread."""
    become_nobody(tmp)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
