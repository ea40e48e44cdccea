"""What a bare command gets: its engine, said in the log; and a seal by signals, with contract and golden answers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from commandline import FAKE_ARGV, events_until, exec_json, run, supervise
from hooks.contract import SnapshotContract
from supervisor import Hooks
from supervisor.cli.command import of_command
from supervisor.cli.exec import exec_
from supervisor.cli.options import sealing
from supervisor.cli.rehearse import _without_json
from supervisor.engines import catalogue
from supervisor.errors import ProfileError
from support import FAKE

SEALABLE = ("--golden", "text", "--contract", "--warmup", "text", "--liveness-s", "0")


def engine_of(*options: str, command: list[str]) -> dict[str, Any]:
    """The event by which `exec` says whose server the command starts; the command itself ends at once."""
    with supervise("exec", "--log-format", "json", *options, "--", *command) as process:
        return events_until(process, "engine.chosen")[-1]


def test_the_log_says_whose_server_it_is(tmp_path: Path) -> None:
    """Guessed from the command, named by the user, or nobody's: with the reason, and how to say otherwise."""
    (program := tmp_path / "llama-server").write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE} "$@"\n')
    program.chmod(0o755)
    argv = [str(program), "--port", "{port}", "--die-while-loading"]
    guessed = engine_of(command=argv)
    assert (guessed["engine"], guessed["level"]) == ("llama.cpp", "info")
    assert guessed["why"].startswith("as the command tells; --engine NAME says otherwise")
    named = engine_of("--engine", "plain", command=argv)
    assert (named["engine"], named["why"]) == ("plain", "as --engine says")
    nobody = engine_of(command=[*FAKE_ARGV, "--die-while-loading"])
    assert nobody["engine"] == "plain"
    assert "llama-cpp" in nobody["why"]
    status, _, err = run("exec", "--engine", "nobody", "--", *argv)
    assert status == 2
    assert "--engine='nobody' is not valid: it must be one of" in err


def test_every_engine_can_be_named() -> None:
    """Each kind takes a bare command: `--engine` with its name gives its dialect."""
    for kind in catalogue.kinds():
        name = kind.name.replace(".", "-")
        given = exec_.make_context("exec", ["--engine", name, "--", "server", "{port}"]).params
        profile, _, chosen = of_command(given.pop("command"), given)
        assert (chosen.engine, profile.dialect.engine) == (kind.name, kind.name)


def test_signals_seal_and_resume() -> None:
    """SIGUSR1 records the golden answer, checks the contract and seals; SIGUSR2 resumes and compares; TERM stops."""
    with supervise(*exec_json(options=SEALABLE)) as process:
        events_until(process, "child.ready")
        process.send_signal(signal.SIGUSR1)
        sealing = events_until(process, "child.sealed")
        assert [event["step"] for event in sealing if event["event"] == "step.passed"] == [
            "golden text record",
            "contract",
        ]
        process.send_signal(signal.SIGUSR1)
        notice = events_until(process, "supervision.notice")[-1]
        assert "cannot seal while sealed" in notice["detail"]
        assert notice["elapsed_s"] >= sealing[-1]["elapsed_s"]
        process.send_signal(signal.SIGUSR2)
        resuming = events_until(process, "child.resumed")
        assert [event["step"] for event in resuming if event["event"] == "step.passed"] == ["golden text replay"]
        process.send_signal(signal.SIGTERM)
        assert events_until(process, "supervise.exit")[-1]["exit_status"] == 0


def test_a_seal_before_ready_is_refused_with_words() -> None:
    """While the server loads nothing can be sealed: a notice, and the load goes on."""
    with supervise(*exec_json("--never-ready", options=SEALABLE)) as process:
        events_until(process, "child.spawned")
        process.send_signal(signal.SIGUSR1)
        assert "cannot seal while loading" in events_until(process, "supervision.notice")[-1]["detail"]
        process.send_signal(signal.SIGINT)
        assert events_until(process, "supervise.exit")[-1]["exit_status"] == 0


def test_a_broken_contract_leaves_the_server_ready(tmp_path: Path) -> None:
    """What no snapshot carries refuses the seal, with the finding; the server serves on and can be stopped."""
    (held := tmp_path / "held").write_bytes(b"x" * 9)
    with supervise(*exec_json("--hold-open", str(held), "--unlink-open", options=SEALABLE)) as process:
        events_until(process, "child.ready")
        process.send_signal(signal.SIGUSR1)
        refusal = events_until(process, "step.failed")[-1]
        assert "stale-file" in refusal["reason"]
        process.send_signal(signal.SIGUSR2)
        assert "cannot resume while ready" in events_until(process, "supervision.notice")[-1]["detail"]
        process.send_signal(signal.SIGTERM)
        assert events_until(process, "supervise.exit")[-1]["exit_status"] == 0


def test_a_worker_can_be_named_on_the_command_line(tmp_path: Path) -> None:
    """`--vital` watches a process of the server's: its end ends the server, with exit code 1 and the worker's name."""
    argv = [sys.executable, "-I", "-S", str(FAKE.with_name("fronted_server.py")), "--port", "{port}"]
    argv += ["--worker-file", str(tmp_path / "worker")]
    with supervise("exec", "--log-format", "json", "--vital", r"--rank \d", "--", *argv) as process:
        events_until(process, "child.ready")
        os.kill(int((tmp_path / "worker").read_text()), signal.SIGKILL)
        end = events_until(process, "supervise.exit")[-1]
    assert (end["exit_status"], end["error"]) == (1, "WorkerDied")
    assert "--rank 0" in end["detail"]


@pytest.mark.parametrize("contract", [True, False])
def test_a_profiles_own_contract_stays_alone(contract: bool) -> None:
    """A contract that the profile has is not doubled, and nothing is added that was not asked for."""
    own = Hooks(before_seal=(SnapshotContract(waive=("io-uring",)),))
    hooks = sealing(own, {"goldens": (), "contract": contract})
    assert hooks == own
    pair = sealing(Hooks(), {"goldens": ("text", "text", "image"), "contract": contract})
    names = [step.name for step in (*pair.before_seal, *pair.after_resume)]
    wanted = ["golden text record", "golden image record", *["contract"] * contract]
    assert names == [*wanted, "golden text replay", "golden image replay"]


def test_a_question_may_stand_in_a_file(tmp_path: Path) -> None:
    """`--golden FILE` asks what the file says, under its name; what is no word and no such file is refused."""
    (question := tmp_path / "sea.txt").write_text("What is the sea?\n")
    hooks = sealing(Hooks(), {"goldens": (str(question),), "contract": False})
    assert [step.name for step in hooks.before_seal] == ["golden sea.txt record"]
    assert [step.name for step in hooks.after_resume] == ["golden sea.txt replay"]
    (empty := tmp_path / "empty").write_text("\n")
    for word in ("txt", str(empty), str(tmp_path)):
        with pytest.raises(ProfileError, match=r"--golden=.* text, image, or the path of a file"):
            sealing(Hooks(), {"goldens": (word,), "contract": False})


def test_a_rehearsed_command_keeps_its_own_options() -> None:
    """`--json FILE` of ours stays outside of the sandbox; what follows `--` is the command's and goes in unchanged."""
    argv = ["--json", "report", "--port", "0", "--", "server", "--json", "x", "--", "--json=y"]
    assert _without_json(argv) == argv[2:]


def test_without_a_listener_for_them_the_signals_are_not_taken() -> None:
    """A host's own SIGUSR1 stays its own: only the commands that supervise take it."""
    program = "from supervisor.cli.signals import Signals; import os, signal; Signals(lambda _: None); "
    code = program + "os.kill(os.getpid(), signal.SIGUSR1)"
    done = subprocess.run([sys.executable, "-c", code], check=False, env={**os.environ})
    assert done.returncode == -signal.SIGUSR1
