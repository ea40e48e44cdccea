"""The program that takes a Modal entry through a rehearsal, run without the sandbox around it."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from fakes.modal_host import APP, KEY, Host, server_pid
from support import alive

pytestmark = pytest.mark.slow

STAGES = ["starting", "deployed", "ready", "sealed", "restored", "resumed", "answered", "stopped"]
LIMIT_S = 50
NOWHERE = "http://127.0.0.1:9"


class Program:
    """The running program: its stages as they come, and its log."""

    def __init__(self, process: subprocess.Popen[str], exchange: Path) -> None:
        self.process = process
        self.exchange = exchange
        self.log: list[str] = []
        self.stdout: queue.Queue[str] = queue.Queue()
        assert process.stdout and process.stderr
        self.threads = [
            threading.Thread(target=self._read, args=(process.stdout, self.stdout.put)),
            threading.Thread(target=self._read, args=(process.stderr, self.log.append)),
        ]
        for thread in self.threads:
            thread.start()

    def _read(self, stream: IO[str], take: Callable[[str], None]) -> None:
        for line in stream:
            take(line.rstrip("\n"))

    def stage(self) -> dict[str, Any]:
        """The next stage; nothing else is on stdout."""
        stage: dict[str, Any] = json.loads(self.stdout.get(timeout=LIMIT_S))
        return stage

    def until(self, name: str) -> dict[str, Any]:
        """The stage of that name; on the way nothing fails."""
        while (stage := self.stage())["stage"] != name:
            assert stage["stage"] != "failed", stage
        return stage

    def await_line(self, text: str) -> None:
        """Waits until the log has a line with that text."""
        ends = time.monotonic() + LIMIT_S
        while not any(text in line for line in self.log):
            assert time.monotonic() < ends, self.log
            time.sleep(0.005)

    def restore(self, **env: str) -> None:
        """What the parent does once the sandbox is restored."""
        draft = self.exchange / "draft"
        draft.write_text(json.dumps({"env": env}))
        draft.rename(self.exchange / "restored.json")

    def wait(self) -> int:
        """The exit code, once all its output is read."""
        code = self.process.wait(LIMIT_S)
        for thread in self.threads:
            thread.join(LIMIT_S)
        return code


@contextmanager
def rehearsing(
    home: Path, given: Mapping[str, str], entry: Path = APP, own: Mapping[str, str] | None = None
) -> Iterator[Program]:
    """The program, from a directory that is not the entry's; `own` is in its environment."""
    exchange = home / "exchange"
    exchange.mkdir()
    argv = [sys.executable, "-m", "modal_entry.rehearsal.inside", str(entry), "--exchange", str(exchange)]
    argv += [word for name, value in given.items() for word in ("--env", f"{name}={value}")]
    env = {name: value for name, value in os.environ.items() if name != "API_KEY"} | dict(own or {})
    env |= {name: value for name, value in given.items() if name.endswith("_PATH")}  # in the place of mounts
    with subprocess.Popen(
        argv, cwd=home, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        program = Program(process, exchange)
        try:
            yield program
        except BaseException as error:
            error.add_note("\n".join(program.log))
            process.send_signal(signal.SIGINT)  # its own way out takes the container along
            raise
        finally:
            program.wait()


def variant(folder: Path, body: str) -> Path:
    """The test's entry, its class with more in it."""
    entry = folder / "variant.py"
    entry.write_text(APP.read_text().replace("    deployment = SHEET\n", f"    deployment = SHEET\n{body}"))
    return entry


WARMUP_ONLY = """
    def hooks(self):
        from hooks.warmup.steps import Text
        from supervisor import Hooks

        return Hooks(warmup=(Text(),))
"""


@pytest.fixture
def host(tmp_path: Path) -> Callable[..., Host]:
    """Makes a host whose binary is the fake server with faults."""
    return lambda *faults: Host.of_fake(tmp_path, *faults)


def test_the_whole_rehearsal_of_an_entry(host: Callable[..., Host], tmp_path: Path) -> None:
    """Every stage in its order, with its fields; nothing goes on before the restore, then no proxy is in the way."""
    with rehearsing(tmp_path, host().env) as program:
        told = [program.stage() for _ in range(STAGES.index("sealed") + 1)]
        pid = server_pid(program.log)
        assert alive(pid)
        assert program.stdout.empty()
        program.restore(HTTP_PROXY=NOWHERE, HTTPS_PROXY=NOWHERE, ALL_PROXY=NOWHERE, http_proxy=NOWHERE)
        told += [program.stage() for _ in range(4)]
        assert program.wait() == 0
    assert [stage["stage"] for stage in told] == STAGES
    sealed, restored, resumed, answered, stopped = told[STAGES.index("sealed") :]
    assert all(stage["took_s"] >= 0 for stage in (sealed, resumed, answered, stopped))
    assert set(restored) == {"stage"}
    assert (resumed["healed"], resumed["reason"]) == (False, "")
    assert answered["text"] == "OK"
    assert program.stdout.empty()
    log = "\n".join(program.log)
    assert "App deployed" in log
    assert "child.resumed" in log
    assert re.search("carries no such name.*: http_proxy$", log, re.MULTILINE)
    assert KEY not in log
    assert not alive(pid)


def test_a_server_that_did_not_survive_is_healed(host: Callable[..., Host], tmp_path: Path) -> None:
    """A server that dies frozen is replaced at the resume, and the stage says why; the key may be the program's own."""
    env = host().env
    own = {"API_KEY": env.pop("API_KEY")}
    with rehearsing(tmp_path, env, own=own) as program:
        program.until("sealed")
        first = server_pid(program.log)
        os.kill(first, signal.SIGKILL)
        program.restore()
        resumed = program.until("resumed")
        assert resumed["healed"] is True
        assert resumed["reason"].startswith("ChildCrashed: the child was killed by SIGKILL")
        assert program.until("answered")["text"] == "OK"
        program.until("stopped")
        assert program.wait() == 0
    assert server_pid(program.log) != first


def test_a_changed_environment_reaches_the_container(host: Callable[..., Host], tmp_path: Path) -> None:
    """What the parent says changed is in the restored container's environment; a hook that raises fails the resume."""
    hook = """
    @modal.enter(snap=False)
    def look(self):
        raise ValueError(f"zone {os.environ['TZ']} task {os.environ['MODAL_TASK_ID']}")
"""
    with rehearsing(tmp_path, host().env, variant(tmp_path, hook)) as program:
        program.until("sealed")
        before = server_pid(program.log)
        program.restore(TZ="Pacific/Kiritimati")
        program.until("restored")
        failed = program.stage()
        assert program.wait() == 1
    assert (failed["during"], failed["error"], failed["point"], failed["status"]) == ("resume", "ValueError", None, 1)
    assert re.fullmatch(r"zone Pacific/Kiritimati task ta-\d+", failed["detail"])
    assert not alive(before)


@pytest.mark.parametrize(
    ("faults", "status", "error", "point", "words"),
    [
        (("--answer", "empty"), 4, "StepFailed", "warmup", "warmup step 'text' failed"),
        (("--die-while-loading",), 3, "DiedBeforeReady", None, "exited with code 1 during loading"),
    ],
)
def test_what_never_gets_ready_is_reported(
    host: Callable[..., Host],
    tmp_path: Path,
    faults: tuple[str, ...],
    status: int,
    error: str,
    point: str | None,
    words: str,
) -> None:
    """A failing warmup or load ends the program with the error's class, point and exit code; nothing is left."""
    with rehearsing(tmp_path, host(*faults).env) as program:
        program.until("deployed")
        failed = program.stage()
        assert program.wait() == status
    assert failed.keys() == {"stage", "during", "error", "detail", "point", "status"}
    assert (failed["stage"], failed["during"], failed["status"]) == ("failed", "start", status)
    assert (failed["error"], failed["point"]) == (error, point)
    assert words in failed["detail"]
    assert not alive(server_pid(program.log))


@pytest.mark.parametrize(
    ("faults", "error", "words"),
    [
        (("--answer", "empty", "--answer-after", "1"), "BadAnswer", "content is blank"),
        (("--open",), "AuthError", "the server is open to everybody"),
    ],
)
def test_a_restored_server_is_judged(
    host: Callable[..., Host], tmp_path: Path, faults: tuple[str, ...], error: str, words: str
) -> None:
    """A server that answers nothing, or answers strangers, fails the answer, whatever the entry's own Steps say."""
    with rehearsing(tmp_path, host(*faults).env, variant(tmp_path, WARMUP_ONLY)) as program:
        program.until("sealed")
        program.restore()
        program.until("resumed")
        failed = program.stage()
        assert program.wait() == 1
    assert (failed["during"], failed["error"], failed["point"], failed["status"]) == ("answer", error, None, 1)
    assert words in failed["detail"]


def test_a_bad_end_is_reported(host: Callable[..., Host], tmp_path: Path) -> None:
    """A container that ends with another code than 0 has not stopped well."""
    hook = """
    @modal.exit()
    def leave(self):
        os._exit(3)
"""
    with rehearsing(tmp_path, host().env, variant(tmp_path, hook)) as program:
        program.until("sealed")
        program.restore()
        program.until("answered")
        failed = program.stage()
        assert program.wait() == 1
    assert (failed["during"], failed["error"]) == ("stop", "ProgramFailed")
    assert "exited with code 3 after SIGTERM" in failed["detail"]


def test_a_container_that_dies_frozen_is_reported(host: Callable[..., Host], tmp_path: Path) -> None:
    """A container that has ended when it should resume is told by its exit code and its last lines."""
    with rehearsing(tmp_path, host().env) as program:
        program.until("sealed")
        program.await_line("child.sealed")  # written by a thread of its own, which would die with the rest
        (container,) = containers_below(program.process.pid)
        os.kill(container, signal.SIGKILL)
        program.restore()
        program.until("restored")
        failed = program.stage()
        assert program.wait() == 1
    assert (failed["during"], failed["error"]) == ("resume", "ProgramFailed")
    assert "ended with exit code -9" in failed["detail"]
    assert "child.sealed" in failed["detail"]


def containers_below(pid: int) -> list[int]:
    """The container entrypoints among a process's children."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return [child for child in children if "_container_entrypoint" in Path(f"/proc/{child}/cmdline").read_text()]


@pytest.mark.parametrize("key", [None, "  "])
def test_a_missing_key_fails_closed(host: Callable[..., Host], tmp_path: Path, key: str | None) -> None:
    """Without a key, or with a blank one, no container starts; the message names the secret and the option."""
    env = host().env
    del env["API_KEY"]
    with rehearsing(tmp_path, env if key is None else env | {"API_KEY": key}) as program:
        program.until("deployed")
        failed = program.stage()
        assert program.wait() == 2
    assert (failed["during"], failed["error"], failed["status"]) == ("start", "ProfileError", 2)
    assert "'entry-key'" in failed["detail"]
    assert "--env API_KEY=VALUE" in failed["detail"]
    assert "child.spawned" not in "\n".join(program.log)


def test_what_cannot_be_deployed_is_reported(host: Callable[..., Host], tmp_path: Path) -> None:
    """An entry that raises at its import fails the deploy, with the CLI's last lines."""
    broken = tmp_path / "broken.py"
    broken.write_text("raise RuntimeError('broken on purpose')\n")
    with rehearsing(tmp_path, host().env, broken) as program:
        program.until("starting")
        failed = program.stage()
        assert program.wait() == 1
    assert (failed["during"], failed["error"]) == ("start", "ProgramFailed")
    assert "modal deploy" in failed["detail"]
    assert "broken on purpose" in failed["detail"]


def test_an_entry_without_a_server_is_refused(host: Callable[..., Host], tmp_path: Path) -> None:
    """An app without an `@app.server` class deploys, and has nothing to rehearse."""
    plain = tmp_path / "plain.py"
    plain.write_text(
        "import modal\n\napp = modal.App('plain')\n\n\n@app.function()\ndef double(x: int) -> int:\n    return 2 * x\n"
    )
    with rehearsing(tmp_path, host().env, plain) as program:
        program.until("starting")
        failed = program.stage()
        assert program.wait() == 2
    assert failed["error"] == "ProfileError"
    assert "one @app.server class (it has: none)" in failed["detail"]


# What the parent and the program use
