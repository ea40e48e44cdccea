"""Who belongs to a child: found by session, descent, cookie, memory or pipes, and ended with it."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from commandline import events_until, supervise
from supervisor import Hooks, events
from supervisor import supervise as supervise_here
from supervisor.errors import DiedBeforeReady
from supervisor.linux import processes
from supervisor.linux.files import argv
from support import FAKE, Recorder, fake_profile, until

pytestmark = pytest.mark.skipif(not processes.AVAILABLE, reason="there is no /proc here")

SERVER = shlex.join([sys.executable, "-I", "-S", str(FAKE), "--port", "{port}", "--ignore-sigterm", "--alias"])
QUIET = "< /dev/null > /dev/null 2>&1"
# What runs the server so that it leaves the session, the environment and, in the end, its parents.
LEAVING = {
    "another session, a clean environment": "env -i setsid -w {server}",
    "a daemon of a wrapper": f"env -i setsid --fork {{server}} {QUIET}; exec sleep 600",
    "a daemon of a daemon": f"(env -i setsid --fork setsid --fork {{server}} {QUIET}); exec sleep 600",
    "another supervisor": f"{sys.executable} -m supervisor exec --port {{port}} --grace-s 0.2 -- {{server}}; true",
}
LEAVING_SCRIPTS = pytest.mark.parametrize("script", LEAVING.values(), ids=LEAVING)


def marked(mark: str) -> list[int]:
    """Living processes with a word in their command line."""
    return [pid for pid in processes.pids() if mark in argv(pid) and processes.alive(pid)]


def shell(script: str, mark: Path) -> tuple[str, str, str]:
    """A command in which the server is known by its alias."""
    return ("sh", "-c", script.replace("{server}", f"{SERVER} {mark}"))


def children(pid: int) -> list[int]:
    """Children of another process."""
    return [
        child
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in map(int, (task / "children").read_text().split())
    ]


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """A word for command lines; who carries it ends with the test, which else would leave what it failed to find."""
    yield tmp_path
    for pid in marked(str(tmp_path)):
        os.kill(pid, signal.SIGKILL)


@LEAVING_SCRIPTS
def test_a_server_that_left_is_ours_and_ends(script: str, mark: Path) -> None:
    """A descendant without session and cookie is no foreign listener; the child gets ready, and a stop ends it all."""
    options = ("--log-format", "json", "--grace-s", "0.5", "--start-timeout-s", "50")
    with supervise("exec", *options, "--", *shell(script, mark)) as process:
        events_until(process, "child.ready")
        assert marked(str(mark))
        process.send_signal(signal.SIGTERM)
        seen = events_until(process, "supervise.exit")
        assert process.wait(20) == 0
    assert not marked(str(mark))
    assert [event["survivors"] for event in seen if event["event"] == "teardown.finished"] == [[]]


@LEAVING_SCRIPTS
def test_a_killed_supervisor_leaves_none_that_left(script: str, mark: Path) -> None:
    """The guardian finds them too, and ends itself."""
    with supervise("exec", "--log-format", "json", "--start-timeout-s", "50", "--", *shell(script, mark)) as process:
        events_until(process, "child.ready")
        guardian = [pid for pid in children(process.pid) if "WARMBOOT_LIFE" in " ".join(argv(pid))]
        process.kill()
        assert process.wait(20) == -signal.SIGKILL
    until(lambda: not marked(str(mark)) and not any(map(processes.alive, guardian)))


def test_a_daemon_is_refused_and_ended(mark: Path) -> None:
    """A command that detaches and exits 0 never gets ready, and its daemon is not left running."""
    command = shell(f"env -i setsid --fork {{server}} {QUIET}", mark)
    with supervise("exec", "--log-format", "json", "--", *command) as process:
        last = events_until(process, "supervise.exit")[-1]
        assert process.wait(20) == 3
    assert last["error"] == "DiedBeforeReady" and "detached" in last["detail"]
    assert not marked(str(mark))


@pytest.mark.anyio
async def test_a_daemon_that_holds_a_pipe_is_ended_without_adoption(mark: Path) -> None:
    """In a host that adopts no orphans, a daemon is found by the pipes that it inherited."""
    seen = Recorder()
    command = shell("env -i setsid --fork {server}", mark)
    with pytest.raises(DiedBeforeReady):
        await supervise_here(fake_profile(command=command), Hooks(observers=(seen,)))
    assert seen.one(events.TeardownFinished).drained
    assert not marked(str(mark))
