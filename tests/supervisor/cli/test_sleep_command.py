"""`supervise sleep` and `supervise wake`, of servers that `supervise exec` runs: by pid and by name, dead ones too."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from commandline import events_until, exec_json, run, supervise
from supervisor.cli import main
from support import alive, until


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An XDG_RUNTIME_DIR of the test's own, so that it sees its own servers only."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """`supervise sleep` or `wake` in this process: exit code, stdout, stderr."""

    def invoke(name: str, *args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([name, *args], prog_name="supervise")
        said = capsys.readouterr()
        return int(str(ended.value.code)), said.out, said.err

    return invoke


def stop(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Ends a supervisor by SIGTERM; returns its last event."""
    process.send_signal(signal.SIGTERM)
    return events_until(process, "supervise.exit")[-1]


def ready(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Its event `child.ready`."""
    return events_until(process, "child.ready")[-1]


def test_sleep_and_wake_by_name_and_by_pid(runtime: Path, command: Command) -> None:
    """Golden answers and contract, as for a seal by signals; what is done already is said; a stop ends a sleeper."""
    options = ("--name", "one", "--golden", "text", "--contract", "--warmup", "text")
    with supervise(*exec_json(options=options)) as process:
        at = ready(process)
        status, out, err = run("sleep", "one")  # as a process, once
        assert (status, err) == (0, "")
        assert re.match(rf"one \(pid {at['pid']}\) sleeps after \d+\.\d\d s\.\n", out)
        assert "golden text record" in out
        assert "--gpu-memory offload" in out  # nothing was put aside
        events_until(process, "child.sealed")
        status, out, _ = command("sleep", str(at["pid"]))
        assert (status, "sleeps already" in out) == (0, True)
        status, out, _ = command("wake", str(process.pid), "--json")
        woken = json.loads(out)
        assert (status, woken["operation"], woken["already"], woken["replaced"]) == (0, "resume", False, False)
        assert [took["step"] for took in woken["steps"]] == ["golden text replay"]
        assert httpx.get(f"{at['url']}/health").status_code == 200
        status, out, _ = command("wake", "one")
        assert (status, "is awake already" in out) == (0, True)
        assert command("sleep", "one")[0] == 0
        assert stop(process)["exit_status"] == 0
    assert not list(runtime.iterdir())


def test_who_is_meant_must_be_clear(runtime: Path, command: Command) -> None:
    """An unknown name and one that two servers have are refused with a list of what runs; the killed do not count."""
    status, _, err = command("sleep", "one")
    assert status == 2
    assert "None runs now" in err
    one = exec_json(options=("--name", "one"))
    with supervise(*one) as first, supervise(*one) as second:
        pids = [ready(first)["pid"], ready(second)["pid"]]
        for which in ("one", "nobody"):
            status, _, err = command("sleep", which)
            assert status == 2
            assert all(f"one (pid {pid}, supervisor" in err for pid in pids)
        assert command("sleep", str(pids[1]))[0] == 0
        assert command("wake", str(second.pid))[0] == 0
        first.kill()
        first.wait()
        until(lambda: not alive(pids[0]))
        assert (runtime / "warmboot" / f"{first.pid}.sock").exists()
        assert command("sleep", "one")[0] == 0
        assert stop(second)["exit_status"] == 0


def test_a_server_that_died_asleep(command: Command) -> None:
    """The wake starts it anew within the restart budget; beyond it the wake fails in words, and it all ends."""
    options = ("--name", "one", "--restart", "on-resume", "--max-restarts", "1")
    with supervise(*exec_json(options=options)) as process:

        def wake_dead() -> tuple[int, str, str]:
            pid = ready(process)["pid"]
            assert command("sleep", "one")[0] == 0
            os.kill(pid, signal.SIGKILL)
            until(lambda: not alive(pid))
            return command("wake", "one")

        status, out, _ = wake_dead()
        assert status == 0
        assert "a cold start has replaced the process that slept" in out
        status, _, err = wake_dead()
        assert status == 1
        assert "was killed by SIGKILL" in err
        assert "Not restarted" in err
        assert events_until(process, "supervise.exit")[-1]["exit_status"] == 1
