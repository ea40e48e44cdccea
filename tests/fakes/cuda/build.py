"""Compile the stub, its programs and the library under test, plain or with a sanitizer."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parents[2] / "hooks" / "sleep" / "offload"
LIBRARY_FLAGS = (
    "-std=c11",
    "-O2",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-pthread",
    "-Wall",
    "-Wextra",
    "-Werror",
)
SANITIZERS = {
    "plain": (),
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-O1", "-g"),
    "thread": ("-fsanitize=thread", "-O1", "-g"),
}
RUNTIMES = {"address": ("libasan.so", "libubsan.so"), "thread": ("libtsan.so",)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """Where everything lies that one kind of build made."""

    kind: str
    folder: Path

    @property
    def library(self) -> Path:
        """The library under test."""
        return self.folder / "libwarmboot_gpu.so"

    @property
    def program(self) -> Path:
        """The C program."""
        return self.folder / "engine"

    @property
    def engine(self) -> Path:
        """What the Python program loads."""
        return self.folder / "libengine.so"

    @property
    def runtimes(self) -> tuple[str, ...]:
        """The sanitizer's own libraries, which must be loaded before all others."""
        return tuple(
            subprocess.run(
                ["cc", f"-print-file-name={name}"], check=True, capture_output=True, text=True
            ).stdout.strip()
            for name in RUNTIMES.get(self.kind, ())
        )


def build_once(tmp_path_factory: pytest.TempPathFactory, kind: str = "plain") -> Built:
    """What `build` makes, made once for all workers of a test run."""
    return build_below(tmp_path_factory.getbasetemp(), kind)


def build_below(base: Path, kind: str = "plain") -> Built:
    """The same below a folder; where that is one of pytest-xdist's, below the one that its workers have in common."""
    if base.name.startswith("popen-gw"):
        base = base.parent
    folder = base / f"fake-cuda-{kind}"
    with (base / f"fake-cuda-{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            folder.mkdir(exist_ok=True)
            build(folder, kind)
            (folder / "complete").touch()
    return Built(kind=kind, folder=folder)


def build(folder: Path, kind: str = "plain") -> Built:
    """Compile all of it into `folder`; the commands run beside each other as far as they can."""
    if shutil.which("cc") is None:
        import pytest  # here, because servers' programs import the fault matrix, and this with it

        pytest.skip("compiler: needs a C compiler (cc)")  # the words of tests/conftest.py
    common = (
        "-std=c11",
        "-O1",
        "-fPIC",
        "-fvisibility=hidden",
        "-pthread",
        "-Wall",
        "-Wextra",
        "-Werror",
        *SANITIZERS[kind],
    )
    shared = (*common, "-shared")
    built = Built(kind=kind, folder=folder)
    found = ("-L", str(folder), "-Wl,-rpath,$ORIGIN", "-l:libcudart.so.13", "-l:libcuda.so.1", "-ldl")

    def stub(name: str, *sources: str) -> list[str]:
        paths = [str(HERE / source) for source in sources]
        return ["cc", *shared, f"-Wl,-soname,{name}", "-o", str(folder / name), *paths, "-ldl"]

    library = [
        "cc",
        *LIBRARY_FLAGS,
        *SANITIZERS[kind],
        "-o",
        str(built.library),
        *map(str, sorted(SOURCES.glob("*.c"))),
        "-ldl",
    ]
    at_once(
        stub("libcuda.so.1", "control.c", "memory.c", "pinned.c", "work.c"),
        stub("libcudart.so.13", "runtime.c"),
        stub("libnvidia-ml.so.1", "nvml.c"),
        *([library] if any(SOURCES.glob("*.c")) else []),
    )
    engine = str(HERE / "engine.c")
    at_once(
        ["cc", *shared, "-o", str(built.engine), engine, *found],
        ["cc", *common, "-o", str(built.program), engine, str(HERE / "engine_main.c"), *found],
    )
    return built


def at_once(*commands: list[str]) -> None:
    """Run the commands beside each other; one that fails shows what it said."""
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    said = [(process, process.communicate()[1]) for process in running]
    for process, words in said:
        if process.returncode:
            message = f"{process.args!r} exited with {process.returncode}:\n{words}"
            raise RuntimeError(message)
