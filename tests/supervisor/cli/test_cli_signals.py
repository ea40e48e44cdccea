"""Signals to the command line: a repeated one, a second one, ignored ones, and ends that have come."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from commandline import FAKE_ARGV, events_until, exec_json, run, supervise
from support import alive


def until_dead(pid: int) -> None:
    """Waits until a process has ended."""
    ends = time.monotonic() + 10
    while alive(pid):
        assert time.monotonic() < ends
        time.sleep(0.005)


def strike_until_it_ends(process: subprocess.Popen[str], number: signal.Signals) -> int:
    """Repeats a signal, as an impatient user does, until the process has ended."""
    for _ in range(100):
        process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            return process.wait(0.3)
    raise AssertionError("it outlived 100 signals")


def test_a_second_signal_kills_at_once() -> None:
    """The first signal waits for the grace period, a later one does not; nothing is left, and the last line says so."""
    with supervise(*exec_json("--ignore-sigterm", options=("--grace-s", "600"))) as process:
        pid = events_until(process, "child.ready")[-1]["pid"]
        process.send_signal(signal.SIGTERM)
        seen = events_until(process, "child.stopping")
        assert strike_until_it_ends(process, signal.SIGTERM) == 128 + signal.SIGTERM
        seen += events_until(process, "supervise.exit")
        assert process.stderr and process.stderr.read() == ""
    assert seen[-1]["exit_status"] == 128 + signal.SIGTERM and "a second signal came (SIGTERM)" in seen[-1]["detail"]
    until_dead(pid)


def test_a_repeated_signal_is_one_request() -> None:
    """Signals that follow at once, as those of GNU timeout to its child and its group, ask for one graceful stop."""
    with supervise(*exec_json("--slow-sigterm", "0.4", options=("--grace-s", "600"))) as process:
        events_until(process, "child.ready")
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            process.send_signal(number)
        seen = events_until(process, "supervise.exit")
        assert process.wait(20) == 0
    assert [event["exit_code"] for event in seen if event["event"] == "child.exited"] == [0]
    assert seen[-1]["exit_status"] == 0


@pytest.mark.parametrize("block", ["time.sleep(3600)", "while True: pass", "re.match('(a+)+b', 'a' * 60)"])
def test_a_step_that_blocks_the_loop_does_not_hold_up_a_second_signal(block: str, tmp_path: Path) -> None:
    """Nothing of the kill depends on the event loop: the last line is written, and the child's group is killed."""
    spec = tmp_path / "stuck.py"
    spec.write_text(
        "import re, sys, time\n"
        "from supervisor import Hooks, Profile\n"
        "class Stuck:\n"
        "    name, deadline_s = 'stuck', None\n"
        "    async def __call__(self, child):\n"
        "        sys.stdout.write('blocked\\n')\n"
        "        sys.stdout.flush()\n"
        f"        {block}\n"
        f"profile = Profile(name='s', command={tuple(FAKE_ARGV)!r})\n"
        "server = profile, Hooks(warmup=(Stuck(),))\n"
    )
    with supervise("run", f"{spec}:server", "--log-format", "json") as process:
        pid = events_until(process, "child.spawned")[-1]["pid"]
        assert process.stdout
        assert process.stdout.readline() == "blocked\n"  # before that the loop runs, and would stop as asked
        assert strike_until_it_ends(process, signal.SIGINT) == 128 + signal.SIGINT
        assert events_until(process, "supervise.exit")[-1]["exit_status"] == 128 + signal.SIGINT
    until_dead(pid)


def test_an_ignored_signal_stays_ignored() -> None:
    """Under `nohup`, a hangup is no request to stop; TERM still is."""
    ignoring = ("sh", "-c", "trap '' HUP; exec \"$@\"", "sh")
    with supervise(*exec_json("--ignore-sigterm", options=("--grace-s", "0.5")), under=ignoring) as process:
        events_until(process, "child.ready")
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)  # the second request to stop would end it with 128 + 15
        seen = events_until(process, "supervise.exit")
        assert process.wait(20) == 0
    assert [event["asked"] for event in seen if event["event"] == "child.stopping"] == [True]


def test_ignored_ends_of_children_are_heard_again() -> None:
    """A parent that ignores SIGCHLD hides how children end; supervise asks for the default, and knows the code."""
    code = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    status, _, err = run("exec", "--", *FAKE_ARGV, "--die-while-loading", under=(sys.executable, "-c", code))
    assert status == 3
    assert "exited with code 1 during loading" in err


AT_EXIT = """
import atexit, os, signal, sys
def strike():
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        os.kill(os.getpid(), number)
atexit.register(strike)
from supervisor.cli import main
main(prog_name="supervise", args=sys.argv[1:])
"""


@pytest.mark.parametrize(("flags", "status"), [(("--die-while-loading",), 3), (("--never-ready",), 0)])
def test_no_signal_changes_an_end_that_has_come(flags: tuple[str, ...], status: int) -> None:
    """Between the end of supervision and the exit of the process, a signal is too late to change the exit code."""
    argv = [sys.executable, "-c", AT_EXIT, *exec_json(*flags)]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        if not status:
            events_until(process, "child.spawned")
            process.send_signal(signal.SIGINT)
        events_until(process, "supervise.exit")
        assert process.wait(20) == status
