"""The smoke test as a command, and against a real engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from commandline import events_until, run, supervise
from hooks.smoke.run import NAMES
from support import DATA, ROOT
from tools.serve import KEY, running_fake

# ------------------------------------------------------------------------------------------------ the command line


def test_smoke_passes_and_writes_json(tmp_path: Path) -> None:
    """Exit 0, the table on stdout, JSON in the file; with `-` stdout is JSON and nothing else."""
    env = {"MY_KEY": KEY}
    options = ("--api-key-env", "MY_KEY", "--skip", "image", "--slots", "2")
    with running_fake("--metrics", "--parallel", "2", "--alias", "m") as child:
        out = tmp_path / "report.json"
        status, stdout, stderr = run("smoke", child.url, *options, "--json", str(out), env=env)
        assert status == 0
        assert stderr.splitlines()[:2] == ["supervise smoke: wait ...", "supervise smoke: auth ..."]
        assert "(m): all good" in stdout
        assert "as asked (skip image)" in stdout
        assert json.loads(out.read_text())["ok"] is True
        only = ("--only", "text", "--only", "auth")
        status, stdout, stderr = run("smoke", child.url, *options, *only, "--json", "-", env=env)
    assert status == 0
    assert [row["name"] for row in json.loads(stdout)["rows"] if row["outcome"] == "ok"] == ["wait", "auth", "text"]
    assert "all good" in stderr


def test_smoke_fails_with_4(tmp_path: Path) -> None:
    """Any failed check is exit code 4, and the table says what was seen."""
    with running_fake("--open") as child:
        status, stdout, _ = run("smoke", child.url, "--api-key-env", "K", "--only", "auth", env={"K": KEY})
        assert status == 4
        assert "open to everybody" in stdout
        assert run("smoke", child.url, "--open", "--only", "text")[0] == 0
        wake = ("--idle-then-wake", "0.01", "--wake-limit-s", "0.0001", "--only", "wake")
        assert run("smoke", child.url, "--open", *wake, "--json", str(tmp_path / "o"))[0] == 4


def test_smoke_of_a_dead_endpoint() -> None:
    """An endpoint that never answers within the deadline is exit code 3."""
    with running_fake() as child:
        port = child.port
    status, stdout, _ = run("smoke", f"http://127.0.0.1:{port}", "--open", "--deadline-s", "3")
    assert status == 3
    assert "no connection" in stdout


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("ftp://a", "--open"), "URL='ftp://a' is not valid"),
        (("http://a", "--api-key-env", "NO_SUCH"), "NO_SUCH='' is not valid: it must be a non-blank string"),
        (("http://a", "--open", "--skip", "everything"), "--skip='everything' is not valid"),
        (("http://a", "--open", "--json", "/no/such/folder/o"), "No such file or directory"),
        (("http://a", "--slots", "two"), "not a valid integer"),
        (
            ("http://a", "--open", "--engine", "llama"),
            "--engine='llama' is not valid: it must be one of ",
        ),
    ],
)
def test_smoke_refuses_bad_arguments(args: tuple[str, ...], words: str) -> None:
    """Bad arguments are exit code 2 and one readable message, before anything is sent."""
    status, stdout, stderr = run("smoke", *args)
    assert (status, stdout) == (2, "")
    assert words in stderr
    assert "Traceback" not in stderr


def test_other_commands_do_not_pay_for_smoke() -> None:
    """The command line loads neither the HTTP client nor the table renderer before they are needed."""
    heavy = "{'httpx', 'rich', 'hooks.smoke.run', 'hooks.http.endpoint'}"
    code = f"import sys, supervisor.cli.app; print({heavy} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout == "set()\n"


# ------------------------------------------------------------------------------------------------ a real engine


@pytest.mark.engine
@pytest.mark.timeout(300)
def test_a_real_engine() -> None:
    """A real server passes what a small base model can do; that it has no vision, /props tells."""
    options = ("run", f"{DATA / 'rehearsed.py'}:one_thread", "--log-format", "json", "--api-key-env", "MY_KEY")
    with supervise(*options, env={"MY_KEY": KEY}) as process:
        url = events_until(process, "child.ready")[-1]["url"]
        drain = threading.Thread(target=process.stderr.read if process.stderr else os.getpid)
        drain.start()
        skip = ("--skip", "thinking", "--skip", "tools", "--idle-then-wake", "0.1", "--json", "-")
        argv = [sys.executable, "-m", "supervisor", "smoke", url, "--api-key-env", "MY_KEY", *skip]
        env = {**os.environ, "MY_KEY": KEY}
        done = subprocess.run(argv, capture_output=True, text=True, timeout=240, env=env, check=False)
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        drain.join()
    report = json.loads(done.stdout)
    outcomes = {row["name"]: row["outcome"] for row in report["rows"]}
    wanted = dict.fromkeys(("wait", *NAMES), "ok") | dict.fromkeys(("image", "thinking", "tools", "draw"), "skipped")
    assert outcomes == wanted, done.stderr
    rows = {row["name"]: row for row in report["rows"]}
    assert rows["image"]["detail"] == "/props says that the model has no vision"
    assert rows["stream"]["numbers"]["tokens_per_s"] > 0
    assert rows["concurrency"]["numbers"]["slots"] == 2
    assert rows["wake"]["numbers"]["stayed_up"] is True
    assert report["model"] == "gemma-3-270m"
    assert done.returncode == 0
