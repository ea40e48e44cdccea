"""The library under a program that only holds GPU memory: seconds a phase by threads, pieces and ways.

`measure` proves contents by a hash computed on the GPU, and times what the library costs while nothing sleeps.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self

import library
from driver import Checkpoint, DriverError, used_mib
from prints import say, timed

MIB: Final = 1 << 20
CHILD: Final = Path(__file__).with_name("bare_child.py")
_THREADS: Final = (2, 4, 8, 12, 16)
_CHUNKS_MIB: Final = (1, 2, 4, 8)
_STOP_S: Final = 20.0
_MALLOCS: Final = (20, 32 * MIB)

Put = Callable[[str, Any], None]


class Program:
    """`bare_child.py` at work, with the library or without it."""

    def __init__(self, argv: list[str], preload: Path | None, folder: Path, *args: object) -> None:
        env = dict(os.environ, PYTHONUNBUFFERED="1")
        if preload:
            env |= {"LD_PRELOAD": str(preload), library.FOLDER: str(folder)}
        began = time.monotonic()
        self._process = subprocess.Popen(
            [*argv, *map(str, args)], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid
        self.born = self._answer()
        self.born["start_s"] = round(time.monotonic() - began, 3)
        self._folder = folder

    def do(self, *words: object) -> dict[str, Any]:
        """A command, and what was answered."""
        assert self._process.stdin
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def library(self, **request: Any) -> dict[str, Any]:
        """What the library in it answers; `wall_s` is what it took from outside."""
        began = time.monotonic()
        found = library.ask(self._folder / f"{self.pid}.sock", **request)
        return found | {"wall_s": round(time.monotonic() - began, 4)}

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the program ended with code {self._process.wait(_STOP_S)}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._process.communicate(timeout=_STOP_S)
        self._process.kill()
        self._process.wait()


@contextmanager
def folder() -> Iterator[Path]:
    """A private folder for sockets."""
    with tempfile.TemporaryDirectory(prefix="wb-gpu-") as name:
        yield Path(name)


def touch(size: int, threads: int = 16) -> float:
    """Write to so much host memory and give it back, seconds: a virtual machine may get its memory only then."""
    part = size // threads // MIB * MIB

    def fill() -> None:
        with mmap.mmap(-1, part, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            memory.madvise(mmap.MADV_HUGEPAGE)
            view = (ctypes.c_char * part).from_buffer(memory)
            ctypes.memset(view, 1, part)
            del view

    workers = [threading.Thread(target=fill) for _ in range(threads if part else 0)]

    def every() -> None:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    return timed(every)


def short(answer: dict[str, Any]) -> dict[str, Any]:
    """What a table needs of an answer."""
    wanted = ("error", "detail", "seconds", "gb_per_s", "stored_bytes", "zero_bytes", "bytes", "wall_s", "zeros")
    return {name: answer[name] for name in wanted if name in answer}


def cycle(program: Program, threads: int, expected: str, **how: Any) -> dict[str, Any]:
    """Offload, reload, and whether the contents are the same."""
    row: dict[str, Any] = {"threads": threads, **how}
    row["offload"] = short(program.library(op="offload", threads=threads, **how))
    row["gpu_mib_asleep"] = used_mib()
    row["reload"] = short(program.library(op="reload", threads=threads))
    row["same"] = program.do("hash")["found"] == expected
    say(f"    {row}")
    return row


def sweep() -> Iterator[tuple[int, dict[str, Any]]]:
    """Threads, pieces and ways, what matters most first."""
    default = {"chunk_bytes": 2 * MIB, "zeros": "gpu", "verify": True}
    for _ in range(5):
        yield 8, default
    for threads in _THREADS:
        for mib in _CHUNKS_MIB:
            yield threads, default | {"chunk_bytes": mib * MIB}
    for threads in _THREADS:
        yield threads, default | {"verify": False}
    for zeros in ("host", "none"):
        for threads in (8, 16):
            yield threads, default | {"zeros": zeros}


def around_the_driver(program: Program, expected: str) -> dict[str, Any]:
    """One offload with the driver's checkpoint and restore in it; asked twice each, because the second does nothing."""
    row: dict[str, Any] = {"gpu_mib_before": used_mib(), "status": program.library(op="status")}
    row["offload"] = program.library(op="offload")
    row["offload_again"] = program.library(op="offload").get("already")
    row |= {"gpu_mib_asleep": used_mib(), "status_asleep": program.library(op="status")}
    checkpoint = Checkpoint(program.pid)
    try:
        for name in ("lock", "checkpoint", "restore", "unlock"):
            row[f"{name}_s"] = timed(getattr(checkpoint, name))
            if name == "checkpoint":
                row["gpu_mib_between"] = used_mib()
    except DriverError as error:
        row["error"] = str(error)
        say(f"    {error}")
        for undo in (checkpoint.restore, checkpoint.unlock):
            with suppress(DriverError):
                undo()
    row["reload"] = program.library(op="reload")
    row["reload_again"] = program.library(op="reload").get("already")
    row |= {"gpu_mib_after": used_mib(), "same": program.do("hash")["found"] == expected}
    return row


def too_full(program: Program, other: Program, expected: str) -> dict[str, Any]:
    """Somebody takes the GPU's memory meanwhile: what the reload says, and that it works when it is free again."""
    row: dict[str, Any] = {"offload": short(program.library(op="offload"))}
    row["taken_bytes"] = other.do("take", 2048)["found"]
    row["gpu_mib_full"] = used_mib()
    row["refused"] = program.library(op="reload")
    row["state"] = program.library(op="status")["state"]
    row["free_bytes"] = other.do("give")["found"]
    row["reload"] = short(program.library(op="reload"))
    row["same"] = program.do("hash")["found"] == expected
    return row


def damaged(program: Program) -> dict[str, Any]:
    """One byte of what is kept changes: it is found, and the process stays unusable."""
    row: dict[str, Any] = {"offload": short(program.library(op="offload"))}
    row["flipped"] = library.flip(program.pid)
    row["refused"] = program.library(op="reload")
    row["again"] = program.library(op="reload").get("error")
    row["state"] = program.library(op="status")["state"]
    return row


def measure(put: Put, *, python: str, built: Path, unit_mib: int, budget_s: float, plain: bool) -> None:
    """Everything, in the order of what matters; `put` stores each result at once."""
    began = time.monotonic()
    argv = [python, str(CHILD), *(["--ctypes"] if plain else [])]
    sizes = (unit_mib, 12, 4)

    def program(preload: Path | None, *size: int) -> Program:
        return Program(argv, preload, sockets, *(size or sizes))

    with folder() as sockets:
        with program(built) as held:
            expected = held.do("hash")["found"]
            with tried("first", put):
                put("first", around_the_driver(held, expected))
            with tried("sweep", put):
                rows: list[Any] = []
                for threads, how in sweep():
                    if time.monotonic() - began > budget_s:
                        put("cut_after_s", budget_s)
                        break
                    rows.append(cycle(held, threads, expected, **how))
                    put("sweep", rows)
            if not plain:
                with tried("full", put), program(None, 8, 1, 0) as other:
                    put("full", too_full(held, other, expected))
            with tried("damage", put):
                put("damage", damaged(held))
        with tried("awake", put):
            put("awake", awake(program, built))


def awake(program: Callable[..., Program], built: Path) -> dict[str, list[Any]]:
    """What the library costs while nothing sleeps: starts and allocations, with and without it in turns."""
    rows: dict[str, list[Any]] = {"without": [], "with": []}
    with program(None, 8, 1, 0):  # the interpreter and the runtime come from the page cache from now on
        pass
    for way in ("without", "with") * 2:
        with program(built if way == "with" else None, 8, 1, 1) as one:
            rows[way].append(one.born | one.do("malloc", *_MALLOCS)["found"])
    return rows


@contextmanager
def tried(name: str, put: Put) -> Iterator[None]:
    """What fails here is told, and the rest goes on."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  told
        say(f"    {name}: {type(error).__name__}: {error}")
        put(f"{name}_error", f"{type(error).__name__}: {error}")
