"""Starting a program so that a failure leaves no descriptor open, on any version of Python."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path


def popen(
    argv: Sequence[str], *, stdin: int, stdout: int, stderr: int, cwd: Path | str | None, env: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """`subprocess.Popen` in a session of its own, whose pipes are made here.

    Before 3.11.4, Python left the pipes open that it had made when it ran out of descriptors for the next one.

    Raises:
        OSError: as `subprocess.Popen` does.
    """
    wanted = {"stdin": stdin, "stdout": stdout, "stderr": stderr}
    ours: dict[str, int] = {}
    with ExitStack() as on_failure, ExitStack() as always:
        for name in [name for name, what in wanted.items() if what == subprocess.PIPE]:
            read_end, write_end = os.pipe()
            ours[name], wanted[name] = (write_end, read_end) if name == "stdin" else (read_end, write_end)
            on_failure.callback(os.close, ours[name])
            always.callback(os.close, wanted[name])
        started = subprocess.Popen(
            argv,
            stdin=wanted["stdin"],
            stdout=wanted["stdout"],
            stderr=wanted["stderr"],
            cwd=cwd,
            env=env,
            start_new_session=True,
        )
        on_failure.pop_all()
    for name, end in ours.items():
        setattr(started, name, os.fdopen(end, "wb" if name == "stdin" else "rb"))
    return started
