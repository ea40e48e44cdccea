"""Building the library from the packaged sources, finding one that was built, and seeing whether it can be loaded.

One that was built lies in `${XDG_CACHE_HOME:-~/.cache}/warmboot/gpu-memory/<hash>/`, where the hash is that of the
sources, the flags and the machine: an update of this package builds its own, and never uses an older one's.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import secrets
import shlex
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final

from hooks.sleep.offload.errors import CompileFailed, NoCompiler

__all__ = ["FLAGS", "LIBRARY", "build", "can_be_preloaded", "find", "load_error", "sources"]

LIBRARY: Final = "libwarmboot_gpu.so"

# Without -Werror: a newer compiler has new warnings, and a server should not be without the library for one.
FLAGS: Final = ("-std=c11", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread", "-Wall", "-Wextra")
"""What the sources are compiled with; `-ldl` follows them."""

_COMPILE_S: Final = 300.0
_LOAD_S: Final = 20.0
_TAIL_LINES: Final = 20
_SOURCES: Final = Path(__file__).parent
# ld.so(8): LD_PRELOAD is split at blanks and colons, and expands $; a profile substitutes braces.
_NO_PRELOAD: Final = re.compile(r"[\s:${}]")


def sources() -> tuple[Path, ...]:
    """The packaged sources to compile, in a fixed order."""
    return tuple(sorted(_SOURCES.glob("*.c")))


def build(folder: Path | None = None, *, cc: str | None = None) -> Path:
    """Compile the library into `folder` (None: the cache) and return its path. Blocks, for a second or two.

    In the cache it is compiled once. The file appears whole or not at all; several processes may do this at once.

    Args:
        folder: where it goes, as `libwarmboot_gpu.so`; made if it is missing.
        cc: the compiler, also with arguments; None: $CC, else `cc`.

    Raises:
        NoCompiler: there is none.
        CompileFailed: it refused.
        OSError: the folder cannot be written to.
    """
    if folder is None and (built := find()):
        return built
    target = (_cached() if folder is None else folder.absolute() / LIBRARY).resolve()
    named = cc or os.environ.get("CC") or "cc"
    try:
        compiler = shlex.split(named)
    except ValueError as error:  # a quote that is not closed
        raise NoCompiler(compiler=named) from error
    if not compiler or shutil.which(compiler[0]) is None:
        raise NoCompiler(compiler=compiler[0] if compiler else "")
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{LIBRARY}.{secrets.token_hex(4)}")
    try:
        _compile(compiler, beside)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
    return target


def find() -> Path | None:
    """Return the library in the cache, if it was built from the sources of this version; None: build it."""
    with suppress(RuntimeError, OSError):  # no home, or none of ours
        path = _cached()
        if path.is_file():
            return path
    return None


def can_be_preloaded(library: Path) -> bool:
    """Tell whether LD_PRELOAD can name such a path at all."""
    return _NO_PRELOAD.search(os.fspath(library)) is None


def load_error(library: Path) -> str | None:
    """Tell why the dynamic loader would leave the library out here; None: it loads. Blocks for milliseconds."""
    if not can_be_preloaded(library):
        return f"LD_PRELOAD cannot name {library}: put it where no blank, ':', '$' or brace is in its path"
    if not library.is_file():
        return f"there is no file {library}"
    program = shutil.which("true", path="/usr/bin:/bin")
    if program is None:
        return None  # nothing to try it with
    environment = {"LD_PRELOAD": os.fspath(library), "LC_ALL": "C"}
    try:
        done = subprocess.run(
            (program,),
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_LOAD_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{program} with the library preloaded: {error}"
    said = done.stderr.decode(errors="replace").strip()
    # glibc says so and goes on ("ERROR: ld.so: object ... cannot be preloaded (...): ignored."), musl ends with 127.
    if done.returncode or "cannot be preloaded" in said:
        how = f"it ended with {done.returncode}" if done.returncode else "the loader ignores it"
        return f"{how}: {' '.join(said.split())[:300] or 'without a word'}"
    return None


def _cached() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base.absolute() / "warmboot" / "gpu-memory" / _digest() / LIBRARY


def _digest() -> str:
    digest = hashlib.sha256("\0".join((platform.machine(), *FLAGS)).encode())
    for path in sorted((*_SOURCES.glob("*.c"), *_SOURCES.glob("*.h"))):
        digest.update(b"\0" + path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:24]


def _compile(compiler: list[str], out: Path) -> None:
    name = shlex.join(compiler)
    if not sources():
        raise CompileFailed(compiler=name, reason=f"there are no sources in {_SOURCES}: install the package anew")
    argv = (*compiler, *FLAGS, "-o", os.fspath(out), *map(os.fspath, sources()), "-ldl")
    try:
        done = subprocess.run(
            argv,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_COMPILE_S,
            check=False,
        )
    except OSError as error:
        raise CompileFailed(compiler=name, reason=f"it could not be started ({error})") from error
    except subprocess.TimeoutExpired as error:
        raise CompileFailed(compiler=name, reason=f"it did not end within {_COMPILE_S:g} s") from error
    tail = tuple(done.stdout.decode(errors="replace").splitlines()[-_TAIL_LINES:])
    if done.returncode < 0:
        raise CompileFailed(compiler=name, reason=f"it was killed by signal {-done.returncode}", tail=tail)
    if done.returncode or not out.is_file():
        raise CompileFailed(compiler=name, reason=f"it ended with code {done.returncode}", tail=tail)
