"""The lock that builds and downloads of one host wait for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from modal_entry.pipeline.commands import host_lock
from support import ROOT


def test_the_lock_of_a_dead_holder_is_free(tmp_path: Path) -> None:
    """The kernel lets go with the process."""
    code = "import sys; from pathlib import Path; from modal_entry.pipeline.commands import host_lock\n"
    code += "with host_lock(Path(sys.argv[1]), 'x'): print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        holder.kill()
    with host_lock(tmp_path, "x"):
        pass
