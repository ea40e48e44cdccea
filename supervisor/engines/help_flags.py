"""Which flags a program knows, read from its own help text; for engines whose flags come and go between builds.

Two layouts are read: llama.cpp's, whose rows begin in the first column, and argparse's (vLLM, SGLang), whose rows are
indented by two and repeat the value after every spelling.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from supervisor.errors import ProfileError, SpawnError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Binary", "capabilities", "listed"]

Binary = str | Path | tuple[str, ...]
"""A program, or the beginning of a command."""

HELP_S: Final = 30.0  # a build for GPUs may look for devices before it prints its help
HELP_BYTES: Final = 1 << 20

_FLAG: Final = r"-{1,2}[A-Za-z][\w-]*"
# `N`, `{auto,half}`, `KEY [KEY ...]`: words that one blank parts from each other; two blanks begin the description.
_VALUE: Final = r"(?: (?:\{[^}\n]*\}|(?!-)[^\s,{]+))*"
# Flags that a description mentions stand further to the right, or after other words.
_ROW: Final = re.compile(rf"(?m)^ {{0,2}}{_FLAG}(?![^\s,]){_VALUE}(?:,[ ]*{_FLAG}(?![^\s,]){_VALUE})*")
_known: dict[tuple[object, ...], frozenset[str]] = {}


def capabilities(
    binary: Binary,
    env: Mapping[str, str],
    *,
    ask: tuple[str, ...] = ("--help",),
    removed: str | None = None,
    limit_s: float | None = None,
) -> frozenset[str]:
    """Return the flags that a build knows, in every spelling.

    Blocks for as long as the program takes, `limit_s` at most. Remembered in this process until the file changes.

    Args:
        binary: the program, or the beginning of a command.
        env: the whole environment to run it in.
        ask: the arguments that make it print its help.
        removed: words in the description of a flag that is listed although it is gone.
        limit_s: how long the program may take; None: 30 s.

    Raises:
        SpawnError: it cannot be started, is killed by a signal, hangs, or fails without having listed a flag.
        ProfileError: it runs, but its help lists no flag.
    """
    command = binary if isinstance(binary, tuple) else (os.fspath(binary),)
    path = Path(shutil.which(command[0], path=env.get("PATH", os.defpath)) or command[0])
    try:
        stat = path.stat()
    except OSError:
        return _ask(command, env, ask, removed, limit_s or HELP_S)  # fails, and says why
    key = (command, ask, removed, path.resolve(), stat.st_mtime_ns, stat.st_size)
    if key not in _known:
        _known[key] = _ask(command, env, ask, removed, limit_s or HELP_S)
    return _known[key]


def listed(text: str, *, removed: str | None = None) -> frozenset[str]:
    """Return the flags that a help text defines; one that it only mentions, or calls removed, is not among them."""
    rows = list(_ROW.finditer(text))
    ends = [*(row.start() for row in rows[1:]), len(text)]
    kept = (
        row[0]
        for row, end in zip(rows, ends, strict=False)  # no rows: one end
        if removed is None or removed not in " ".join(text[row.end() : end].split())
    )
    return frozenset(flag for names in kept for flag in re.findall(rf"(?:^ *|, *)({_FLAG})", names))


def _ask(
    command: tuple[str, ...], env: Mapping[str, str], ask: tuple[str, ...], removed: str | None, limit_s: float
) -> frozenset[str]:
    argv = (*command, *ask)
    shown = " ".join(ask)
    code, text = _run(argv, env, limit_s)
    if code < 0:
        hint = " (it uses instructions that this CPU lacks: take a build for this machine)"
        name = signal.Signals(-code).name
        raise SpawnError(argv=argv, reason=f"its {shown} was killed by {name}{hint if name == 'SIGILL' else ''}")
    flags = listed(text, removed=removed)
    if not flags and code:
        last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it printed nothing")
        raise SpawnError(argv=argv, reason=f"its {shown} exited with code {code}: {last[:200]}")
    if not flags:
        raise ProfileError(field="binary", value=" ".join(command), allowed=f"a program whose {shown} lists its flags")
    return flags


def _run(argv: tuple[str, ...], env: Mapping[str, str], limit_s: float) -> tuple[int, str]:
    """Return exit status (negative: a signal) and output; SpawnError when it does not start or does not end."""
    # A file, no pipe: a process that the program leaves behind could hold a pipe open, and we would wait for its end.
    with tempfile.TemporaryFile() as out:
        try:
            process = subprocess.Popen(
                argv, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            raise SpawnError(argv=argv, reason=error.strerror or str(error)) from error
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired as error:
            raise SpawnError(
                argv=argv, reason=f"it did not answer {' '.join(argv[-1:])} within {limit_s:g} s"
            ) from error
        finally:
            if process.returncode is None:  # a program that ignores --help may be serving by now
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        out.seek(0)
        return code, out.read(HELP_BYTES).decode(errors="replace")
