"""The soak: a short run finds nothing, and its checks find what is planted."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from supervisor import Profile, events
from supervisor.linux import processes
from support import TESTS, free_port
from system.faults import row
from system.soak import checks
from system.soak.__main__ import main
from system.soak.checks import held, illegal, leaked, orphans, taken
from system.soak.memory import slope
from system.soak.plan import Plan
from system.soak.record import first_cookie_of
from system.soak.run import Soak

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not processes.AVAILABLE, reason="there is no /proc here")]


def test_a_short_soak_finds_nothing() -> None:
    """Three seconds of faults leave no violation behind, and something did happen."""
    run = Soak(3, seed=20261121)
    assert run.run() == []
    assert run.counts["lives"] >= len(run.servers)
    assert run.counts["events"] > run.counts["lives"]
    assert any("lives" in line for line in run.report())


def test_a_seed_repeats_the_plans() -> None:
    """The same seed draws the same episodes, another one does not."""

    def plans(seed: int) -> list[Plan]:
        dice = random.Random(seed)  # noqa: S311  not for secrets
        return [Plan.draw(dice) for _ in range(20)]

    assert plans(1) == plans(1) != plans(2)


def _event(kind: type[events.Event], **fields: Any) -> events.Event:
    return kind(elapsed_s=0.0, unix_s=0.0, **fields)


START = _event(events.Starting, attempt=1)
SPAWN = _event(events.ChildSpawned, pid=7, argv=())
UP = _event(events.ChildUp, waited_s=0.1, probes=1)
READY = _event(events.ChildReady, waited_s=0.1, url="http://127.0.0.1:1", pid=7)
STOPPING = _event(events.Stopping, asked=True, reason="")
EXITED = _event(events.ChildExited, pid=7, exit_code=0, signal=None, uptime_s=1.0)
TORN = _event(events.TeardownFinished, took_s=0.1, escalated=False, drained=True)
STOPPED = _event(events.Stopped)
WHOLE = [START, SPAWN, UP, READY, STOPPING, EXITED, TORN, STOPPED]


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (WHOLE, []),
        ([START, STOPPED], []),
        ([*WHOLE[:2], *WHOLE[3:]], ["child.ready while loading"]),
        ([*WHOLE, START], ["child.starting while stopped", "it ended while starting"]),
        (WHOLE[:4], ["pid 7 was never told to have ended", "it ended while ready"]),
        ([*WHOLE[:5], *WHOLE[6:]], ["pid 7 was never told to have ended"]),
        ([*WHOLE[:6], *WHOLE[7:]], ["pid None was never told to have ended"]),
        ([], ["it ended while None"]),
    ],
)
def test_an_illegal_sequence_is_found(steps: list[events.Event], words: list[str]) -> None:
    """A whole life passes; a transition that the table lacks, and an end that is not told, do not."""
    assert illegal(steps) == words


def test_an_end_without_a_cause_is_found() -> None:
    """An exit has either a code or a signal."""
    odd = _event(events.ChildExited, pid=7, exit_code=None, signal=None, uptime_s=1.0)
    assert illegal([*WHOLE[:5], odd, *WHOLE[6:]]) == ["pid 7 ended by code None and signal None"]


def test_an_orphan_is_found() -> None:
    """A process that carries the cookie of a life is found wherever it is, as long as it lives; so is a zombie."""
    env = {**os.environ, processes.COOKIE: "planted-by-a-test"}
    with subprocess.Popen(["sleep", "60"], env=env, start_new_session=True) as process:
        cookies = {process.pid: first_cookie_of(process.pid)}
        found = orphans(cookies)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        zombie = orphans(cookies)
    assert cookies[process.pid].endswith(b"planted-by-a-test")
    assert found == [
        f"pid {process.pid} was not reaped or is alive",
        f"pid {process.pid} carries a cookie of a life that is over",
    ]
    assert zombie == found[:1]
    assert orphans(cookies) == []


def test_a_port_in_use_is_found() -> None:
    """A listener that stayed is named by its port."""
    port = free_port()
    assert taken({port}) == []
    with socket.create_server(("127.0.0.1", port)):
        assert taken({port}) == [f"port {port}: Address already in use"]


def test_a_leak_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A descriptor and a thread that were not there before are told by what they are."""
    monkeypatch.setattr(checks, "LEAK_WAIT_S", 0.05)
    before = held()
    assert leaked(before) == []
    read_end, write_end = os.pipe()
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name="planted")
    thread.start()
    try:
        assert leaked(before) == ["descriptor pipe x2", "thread planted x1"]
    finally:
        done.set()
        thread.join()
        os.close(read_end)
        os.close(write_end)


def test_growth_is_a_slope() -> None:
    """Memory that grows with the lives has the slope of its growth, whatever it wavers around."""
    steady = [(float(life), 1e8 + (-1) ** life * 4096) for life in range(1000)]
    growing = [(life, size + 8192 * life) for life, size in steady]
    assert abs(slope(steady)) < 10
    assert slope(growing) == pytest.approx(8192, abs=10)
    run = Soak(1, seed=1)
    run.memory = growing
    assert run.grown() == []  # too few lives to tell
    run.counts["lives"] = 1000
    assert run.grown()[0].startswith("memory grows by 81")
    run.memory = steady
    assert run.grown() == []
    assert slope([]) == slope([(1.0, 2.0)] * 3) == 0.0


class Forgetful:
    """A supervision that tells nothing, and leaves its child running."""

    def begin(self, profile: Profile, hooks: Any) -> None:
        """Starts the command, and something else than a supervision."""
        command = [word.replace("{port}", "0") for word in profile.command]
        self.process = subprocess.Popen(
            command, env={processes.COOKIE: "planted"}, stderr=subprocess.DEVNULL, start_new_session=True
        )
        (record,) = hooks.observers
        first_cookie_of(self.process.pid)
        record(_event(events.Starting, attempt=1))
        record(_event(events.ChildSpawned, pid=self.process.pid, argv=("x", "--port", "0")))

    def seal(self) -> None:
        """Nothing."""

    def resume(self) -> None:
        """Nothing."""

    def end(self) -> BaseException | None:
        """Nothing is stopped."""
        return RuntimeError("on purpose")


def test_an_episode_is_checked() -> None:
    """All checks are made of every episode, and a violation ends the run with the last events."""
    run = Soak(1, seed=1, servers=())
    server = Forgetful()
    try:
        plan = Plan(fault=row("ready-stop"), restarts=False, acts=(), stop_after_s=0.0)
        run.episode(plan, server, random.Random(1))  # noqa: S311
    finally:
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    text = "\n".join(run.wrong)
    for words in ("ready-stop", "never told to have ended", "ended while loading", "carries a cookie", "on purpose"):
        assert words in text
    assert "child.spawned" in run.wrong[-1]


def test_a_violation_is_exit_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints the seed and what is wrong, and exits with 1; without a violation with 0."""

    def run(wrong: list[str]) -> Callable[[Soak], list[str]]:
        return lambda _: wrong

    monkeypatch.setattr(Soak, "run", run([]))
    assert main(["1", "--seed", "5"]) == 0
    assert "seed 5" in capsys.readouterr().out
    monkeypatch.setattr(Soak, "run", run(["descriptor pipe x2"]))
    assert main(["1", "--seed", "5"]) == 1
    assert "repeat with --seed 5\ndescriptor pipe x2" in capsys.readouterr().out


def test_the_command_runs_from_anywhere(tmp_path: Path) -> None:
    """As `make soak` runs it, from another folder: it prints counts and exits with 0."""
    argv = [sys.executable, "-m", "system.soak", "0.5", "--seed", "3"]
    env = {**os.environ, "PYTHONPATH": str(TESTS)}
    run = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " lives, " in run.stdout
