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


@pytest.mark.root
def test_pid_1_of_a_container_reaps_what_comes_to_it() -> None:
    """As PID 1 the command gets every orphan of its container, reaps it, and stops as asked."""
    server = f"exec {sys.executable} -I -S {FAKE} --port {{port}}"
    script = f"for i in 1 2 3; do env -i setsid --fork sleep 0.1; done; {server}"
    under = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
    with supervise("exec", "--log-format", "json", "--", "sh", "-c", script, under=under) as process:
        events_until(process, "child.ready")
        (first,) = [pid for pid in processes.pids() if (found := processes.stat(pid)) and found.parent == process.pid]
        until(lambda: not [pid for pid in processes.pids() if _is_zombie_of(first, pid)])
        os.kill(first, signal.SIGTERM)
        (finished,) = [e for e in events_until(process, "supervise.exit") if e["event"] == "teardown.finished"]
        assert finished["survivors"] == [] and not finished["escalated"]
        assert process.wait(20) == 0


@pytest.mark.root
def test_a_server_of_another_user_is_ours_and_ends() -> None:
    """A server behind setpriv(1) that became another user, in a session of its own, is the child's and is ended."""
    program = (
        "import os, sys, http.server as h;"
        "s = h.HTTPServer(('127.0.0.1', int(sys.argv[1])), h.SimpleHTTPRequestHandler);"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); os.chdir('/'); s.serve_forever()"
    )
    script = f'env -i setsid -w setpriv --bounding-set=-sys_boot {sys.executable} -I -S -c "$0" {{port}}'
    options = ("--log-format", "json", "--health", "/", "--start-timeout-s", "50")
    with supervise("exec", *options, "--", "sh", "-c", script, program) as process:
        events_until(process, "child.ready")
        process.send_signal(signal.SIGTERM)
        (finished,) = [e for e in events_until(process, "supervise.exit") if e["event"] == "teardown.finished"]
        assert finished["survivors"] == []
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
