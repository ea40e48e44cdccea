"""What a command that adopts orphans does with them, and a guardian that somebody ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import anyio
import pytest

from commandline import events_until, supervise
from supervisor import Hooks, events
from supervisor import supervise as supervise_here
from supervisor.linux import processes
from supervisor.linux.files import argv
from support import FAKE, ROOT, Recorder, fake_profile, until, until_async

pytestmark = pytest.mark.skipif(not processes.AVAILABLE, reason="there is no /proc here")

ADOPTING = """
import os, subprocess, sys, time
from supervisor.linux import processes
from supervisor.process import orphans

def zombies():
    return {child.pid for child in processes.own_children() if child.zombie}

def until(condition):
    ends = time.monotonic() + 50
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.005)

orphans._UNCLAIMED_S = 0.0
keeper = orphans.Orphans()
mine = subprocess.Popen([sys.executable, "-I", "-S", "-c", "raise SystemExit(7)"], start_new_session=True)
# The shell ends at once; what it started comes to us and ends then.
subprocess.run(["sh", "-c", "setsid sleep 0.1 & sleep 0.1 &"], check=True)
until(lambda: len(zombies()) == 3)
keeper.look()
print(zombies() == {mine.pid}, mine.wait())
"""


def test_adopted_orphans_are_reaped_and_nobody_is_robbed() -> None:
    """Zombies that came to us go; a child that code of ours waits for keeps its exit status."""
    done = subprocess.run([sys.executable, "-c", ADOPTING], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout == "True 7\n"


def test_the_command_reaps_what_its_server_leaves() -> None:
    """Daemons of the server that end leave no zombie behind in the command."""
    server = f"exec {sys.executable} -I -S {FAKE} --port {{port}}"
    script = f"for i in 1 2 3; do env -i setsid --fork sleep 0.1; done; {server}"
    with supervise("exec", "--log-format", "json", "--", "sh", "-c", script) as process:
        events_until(process, "child.ready")
        until(lambda: not [pid for pid in processes.pids() if _is_zombie_of(process.pid, pid)])
        process.send_signal(signal.SIGTERM)
        events_until(process, "supervise.exit")
        assert process.wait(20) == 0


def _is_zombie_of(parent: int, pid: int) -> bool:
    found = processes.stat(pid)
    return found is not None and found.zombie and found.parent == parent


@pytest.mark.anyio
async def test_a_guardian_that_was_ended_is_replaced() -> None:
    """Whoever kills the guardian leaves the child guarded: another one comes, and an event says so."""
    seen = Recorder()

    def guardians() -> list[int]:
        return [child.pid for child in processes.own_children() if "WARMBOOT_LIFE" in " ".join(argv(child.pid))]

    async with anyio.create_task_group() as tasks:
        await tasks.start(supervise_here, fake_profile(), Hooks(observers=(seen,)))
        (guardian,) = guardians()
        os.kill(guardian, signal.SIGKILL)
        await until_async(lambda: seen.of(events.Notice))
        (another,) = guardians()
        assert another != guardian
        assert f"pid {guardian}" in seen.one(events.Notice).detail
        tasks.cancel_scope.cancel()
