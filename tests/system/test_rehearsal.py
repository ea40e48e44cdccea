"""`supervise rehearse`: real checkpoints and restores in gVisor, of the fake server and of a real engine.

They need `runsc` and root, and are skipped without; `.ci/run` installs it, and fails when anything was skipped.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fakes import gemma_volumes
from fakes.cuda.build import build_once
from support import ROOT, until

if TYPE_CHECKING:
    from collections.abc import Iterator

SPECS = ROOT / "tests" / "data" / "rehearsed.py"
FAKE = f"{SPECS}:fake"
MMAP = f"{SPECS}:mmap"
ONE_THREAD = f"{SPECS}:one_thread"
in_sandbox = pytest.mark.sandbox
pytestmark = pytest.mark.slow
SECRETS = {"HF_TOKEN": "hf_planted_and_not_needed", "MODAL_TOKEN_SECRET": "as-planted-and-not-needed"}


class Rehearsal:
    """One run of the command: exit code, both streams, and the JSON report."""

    def __init__(self, status: int, out: str, err: str, report: dict[str, Any]) -> None:
        self.status, self.out, self.err, self.report = status, out, err, report

    def verdicts(self) -> tuple[str, str]:
        """Of the contract and of the golden answer."""
        return self.report["contract"]["verdict"], self.report["golden"]["verdict"]


@contextmanager
def rehearsing(
    *args: str, under: tuple[str, ...] = (), env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """`supervise rehearse ARGS` as a process; killed at the end if it still runs."""
    clean = {name: value for name, value in os.environ.items() if name not in SECRETS}
    argv = [*under, sys.executable, "-m", "supervisor", "rehearse", *args]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**clean, **(env or {})}, cwd=ROOT
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def rehearse(tmp_path: Path) -> Callable[..., Rehearsal]:
    """Runs a rehearsal to its end."""

    def run(*args: str, command: tuple[str, ...] = (), **env: str) -> Rehearsal:
        file = tmp_path / "report.json"
        rest = ("--", *command) if command else ()
        with rehearsing(*args, "--json", str(file), *rest, env=env) as process:
            out, err = process.communicate()  # under the test's own timeout
        assert file.read_text(), err
        return Rehearsal(process.returncode, out, err, json.loads(file.read_text()))

    return run


def sandboxes(pid: int) -> list[str]:
    """Command lines of processes that belong to the rehearsal of a process."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"warmboot-{pid}-" in line:
            found.append(line)
    return found


def scratch(folder: Path) -> set[Path]:
    """The folders of rehearsals that are there now."""
    return set(folder.glob("warmboot-rehearsal-*"))


@in_sandbox
@pytest.mark.engine
@pytest.mark.timeout(300)
def test_a_real_engine_survives(rehearse: Callable[..., Rehearsal]) -> None:
    """Real llama.cpp without mmap: a drifted weight file is harmless, and a restore is sooner than a cold start."""
    done = rehearse(ONE_THREAD, "--drift", "weights")
    assert done.status == 0, done.out + done.err
    assert done.verdicts() == ("passed", "passed")
    assert done.report["healed"] == ""
    assert done.report["timers"] == []
    assert done.report["image_bytes"] > 200_000_000  # the weights are in it
    assert done.report["answer"]
    assert done.report["speed_up"] > 0
    assert "can be snapshotted" in done.out
    assert f"{done.report['speed_up']:.1f} x" in done.out


@in_sandbox
def test_a_bare_command_is_rehearsed(rehearse: Callable[..., Rehearsal]) -> None:
    """A command after -- is taken as `exec` takes it, and gets contract and golden answers."""
    fake = ROOT / "tests" / "fakes" / "fake_server.py"
    command = (sys.executable, "-I", "-S", str(fake), "--port", "{port}")
    done = rehearse("--warmup", "text", command=command)
    assert done.status == 0, done.out + done.err
    assert done.verdicts() == ("passed", "passed")
    assert f"{sys.executable}: can be snapshotted" in " ".join(done.out.split())


@in_sandbox
@pytest.mark.engine
@pytest.mark.timeout(300)
def test_mapped_weights_are_refused(rehearse: Callable[..., Rehearsal]) -> None:
    """With mmap the contract refuses the seal, and shows the line of /proc/<pid>/maps."""
    done = rehearse(MMAP, "--drift", "weights")
    assert done.status == 5
    assert done.verdicts() == ("failed", "not run")
    assert "weights-mapped" in done.report["contract"]["detail"]
    assert "/maps line" in done.report["failure"]
    assert "gemma-3-270m-q4_k_m.gguf" in done.report["failure"]
    assert done.report["image_bytes"] is None


@in_sandbox
@pytest.mark.engine
@pytest.mark.timeout(300)
def test_mapped_weights_that_drift_are_caught_later(rehearse: Callable[..., Rehearsal]) -> None:
    """Without the contract, a replaced file under mmap gives another answer after the restore, and that is caught."""
    done = rehearse(MMAP, "--drift", "weights", "--no-contract")
    assert done.status == 5
    assert done.verdicts() == ("off", "failed")
    assert done.report["image_bytes"] < 150_000_000  # the weights are not in it
    assert "after_resume step 'golden text replay' failed" in done.report["failure"]


@in_sandbox
@pytest.mark.engine
@pytest.mark.timeout(300)
def test_mapped_weights_that_shrink_kill_the_server(rehearse: Callable[..., Rehearsal]) -> None:
    """Without the contract, a truncated file under mmap ends the restored server by SIGBUS, and that is caught."""
    done = rehearse(MMAP, "--drift", "weights-truncated", "--no-contract")
    assert done.status == 5
    assert "SIGBUS" in done.report["failure"]


@in_sandbox
@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "so that the entry finds /models/gemma-4-26b-a4b"),
        (("--no-contract",), "an entry is rehearsed as its own file says"),
    ],
)
def test_an_entry_without_volumes_is_not_begun(args: tuple[str, ...], said: str) -> None:
    """Without its volumes an entry could only fail later, with other words."""
    with rehearsing("modal_entry/gemma.py", *args) as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert said in err


@in_sandbox
@pytest.mark.engine
@pytest.mark.timeout(300)
def test_the_gemma_entry_survives(rehearse: Callable[..., Rehearsal], tmp_path: Path) -> None:
    """`modal_entry/gemma.py` as it is, deployed and run by Modal's own programs, with a dummy of its architecture."""
    gemma_volumes.make(tmp_path)
    mounts = ("--mount", f"{tmp_path}/models:/models", "--mount", f"{tmp_path}/builds:/llama-build")
    key = "sk-rehearsed-in-a-test"
    given = ("--env", f"API_KEY={key}", "--drift", "weights", "--drift", "env")
    done = rehearse("modal_entry/gemma.py", *mounts, *given)
    assert done.status == 0, done.out + done.err
    assert done.verdicts() == ("passed", "passed")
    steps = [(e["fields"]["point"], e["fields"]["step"]) for e in done.report["events"] if "passed" in e["name"]]
    assert [step for point, step in steps if point == "warmup"] == ["text", "thinking", "image", "auth"]
    assert [step for point, step in steps if point == "after_resume"] == ["golden text replay", "golden image replay"]
    assert done.report["answer"]
    assert key not in done.out + done.err + json.dumps(done.report)


@in_sandbox
@pytest.mark.timeout(300)
def test_a_suspension_fires_no_timer(rehearse: Callable[..., Rehearsal]) -> None:
    """The clock jumps by longer than every timer, other variables are there: nothing minds. Secrets stay here."""
    with_key = {"REHEARSED_API_KEY": "sk-needed-by-the-server", "REHEARSED_FLAGS": "--load-s 0.3"}
    done = rehearse(FAKE, "--suspend-s", "6", "--drift", "env", **SECRETS, **with_key)
    assert done.status == 0, done.out + done.err
    assert done.report["suspended_s"] >= 6
    assert done.report["timers"] == []
    assert done.report["healed"] == ""
    names = [event["name"] for event in done.report["events"]]
    assert names.count("child.ready") == 1
    assert names.index("child.sealed") < names.index("child.resumed")
    assert done.report["strays"] == []  # what the profile does not name is not in the snapshot


@in_sandbox
@pytest.mark.timeout(300)
def test_another_answer_is_healed_and_told(tmp_path: Path) -> None:
    """A server that answers otherwise after the restore is replaced in place; the rehearsal fails all the same."""
    flag, report = tmp_path / "shared" / "drift", tmp_path / "report.json"
    flag.parent.mkdir()
    args = (FAKE, "--suspend-s", "3", "--mount", f"{flag.parent}:/shared", "--json", str(report))
    with rehearsing(*args, env={"REHEARSED_FLAGS": "--answer-drift-file /shared/drift"}) as process:
        assert process.stderr
        for line in process.stderr:
            if "child.sealed" in line:
                flag.touch()
        out, _ = process.communicate(timeout=60)
    told = json.loads(report.read_text())
    assert process.returncode == 5, out
    assert told["golden"]["verdict"] == "failed"
    assert "golden text replay" in told["healed"]
    assert told["answer"]
    assert [event["name"] for event in told["events"]].count("child.ready") == 2
    assert "cold start instead" in out


@in_sandbox
@pytest.mark.timeout(300)
@pytest.mark.parametrize("damaged", [False, True], ids=["whole", "damaged"])
def test_gpu_memory_survives_in_host_memory(
    rehearse: Callable[..., Rehearsal], tmp_path_factory: pytest.TempPathFactory, damaged: bool
) -> None:
    """Put aside, saved, restored and brought back, every byte is the same; one bit that is not means a cold start."""
    cuda = build_once(tmp_path_factory)
    fault = {"REHEARSED_DAMAGE": "1"} if damaged else {}
    done = rehearse(f"{SPECS}:gpu", REHEARSED_CUDA=str(cuda.folder), **fault)
    (away,) = [event["fields"] for event in done.report["events"] if event["name"] == "gpu.offloaded"]
    back = [event["fields"] for event in done.report["events"] if event["name"] == "gpu.reloaded"]
    assert (away["bytes"], away["stored_bytes"]) == (32 << 20, 16 << 20)
    assert done.report["answer"] == "OK"  # which the fake says only while every byte of its GPU memory is right
    if damaged:
        assert done.status == 5
        assert back == []
        assert "a piece of it came back damaged (2097152 bytes at 0x" in done.report["healed"]
        return
    assert done.status == 0, done.out + done.err
    assert [(it["bytes"], it["stored_bytes"]) for it in back] == [(32 << 20, 16 << 20)]
    assert done.verdicts() == ("passed", "passed")
    assert done.report["notes"] == []
    assert done.report["healed"] == ""
    assert done.report["sleep_s"] > 0 and done.report["wake_s"] > 0
    assert "gpu memory offload" in done.out


@in_sandbox
@pytest.mark.timeout(300)
def test_an_event_loop_of_python_waits_by_poll(rehearse: Callable[..., Rehearsal]) -> None:
    """An asyncio server, which this gVisor cannot save as it is, is rehearsed with poll, and that is said."""
    done = rehearse(f"{SPECS}:asyncio_server")
    assert done.status == 0, done.out + done.err
    assert "poll instead of epoll" in done.report["adapted"]
    assert "poll instead of epoll" in done.out
    assert done.report["answer"] == "HTTP 200"
    assert [event["name"] for event in done.report["events"]].count("child.ready") == 1  # of the second try alone


@in_sandbox
@pytest.mark.timeout(300)
def test_a_server_that_gvisor_cannot_save(rehearse: Callable[..., Rehearsal]) -> None:
    """A listener under an epoll that nothing can be done about is no verdict on the server, and that is said."""
    done = rehearse(f"{SPECS}:sealed_off")
    assert done.status == 1
    assert "runsc cannot save this sandbox" in done.report["failure"]
    assert "says nothing about the server" in done.report["failure"]
    assert "goroutine" not in done.out


@in_sandbox
@pytest.mark.timeout(300)
def test_secrets_that_are_not_needed_are_found(rehearse: Callable[..., Rehearsal]) -> None:
    """The contract refuses secrets that the server does not need; what is in the snapshot is found, and named."""
    done = rehearse(FAKE, **SECRETS, REHEARSED_INHERIT="*")
    assert done.status == 5
    assert "stray-secret" in done.report["failure"]
    done = rehearse(FAKE, "--no-contract", **SECRETS, REHEARSED_INHERIT="*")
    assert done.status == 5
    assert done.report["strays"] == sorted(SECRETS)
    for secret in SECRETS.values():
        assert secret not in done.out + done.err + json.dumps(done.report)


@in_sandbox
@pytest.mark.parametrize(
    ("flags", "status", "said"),
    [("--die-while-loading", 3, "exited with code 1 during loading"), ("--answer empty", 4, "content is blank")],
)
def test_a_failure_before_the_seal_has_its_own_code(
    rehearse: Callable[..., Rehearsal], flags: str, status: int, said: str
) -> None:
    """A server that never gets ready is no matter of snapshots: exit codes as those of `run`."""
    done = rehearse(FAKE, REHEARSED_FLAGS=flags)
    assert done.status == status
    assert said in done.report["failure"]


@in_sandbox
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("moment", ["child.spawned", "child.sealed"])
def test_nothing_stays_behind(moment: str, number: signal.Signals, tmp_path: Path) -> None:
    """A rehearsal that is told to stop, or killed, leaves no sandbox; told to stop, no file either."""
    env = {"REHEARSED_FLAGS": "--load-s 0.5", "TMPDIR": str(tmp_path)}
    with rehearsing(FAKE, "--suspend-s", "60", env=env) as process:
        assert process.stderr
        for line in process.stderr:
            if moment in line:
                break
        until(lambda: scratch(tmp_path))
        process.send_signal(number)
        out = process.communicate(timeout=30)[0]
    assert process.returncode == (128 + number if number == signal.SIGTERM else -number)
    assert "can be snapshotted" not in out
    until(lambda: not sandboxes(process.pid))
    if number == signal.SIGTERM:
        assert not scratch(tmp_path)


def test_without_runsc_it_says_what_to_install(tmp_path: Path) -> None:
    """No sandbox, no rehearsal: exit code 2 and the command that helps."""
    with rehearsing(FAKE, env={"PATH": str(tmp_path)}) as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "apt-get install runsc" in err


@in_sandbox
def test_where_sandboxes_are_forbidden_it_says_so() -> None:
    """In a container that is not privileged, runsc's own words come with what they mean."""
    with rehearsing(FAKE, under=("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")) as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert "runsc may not make one here" in err
    assert "operation not permitted" in err


@in_sandbox
@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--drift", "weights"), "for a profile that names its weights"),
        (("--drift", "weights", "--weights", "/nowhere/model.gguf"), "for weights that are there: /nowhere/model.gguf"),
        (("--drift", "weights", "--drift", "weights-moved"), "at most one of weights"),
        (("--mount", "/nowhere:/x"), "a folder that exists here, as /nowhere does not"),
        (("--mount", "/var:/"), "none of / /proc /dev /sys"),
        (("--mount", "/etc:/x", "--mount", "/var:/x/"), "the only one at its PATH"),
    ],
)
def test_bad_arguments_are_named(args: tuple[str, ...], said: str) -> None:
    """What cannot be drifted or mounted ends it before a sandbox is made."""
    with rehearsing(FAKE, *args, env={"API_KEY": ""}) as process:
        _, err = process.communicate(timeout=30)
    assert process.returncode == 2
    assert said in err
