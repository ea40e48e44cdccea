"""Modal's own programs against a local control plane: `modal deploy`, `modal run`, and the container entrypoint.

A `Container` runs a function as it was deployed: the mounted sources and nothing else make up its /root, `ENV` lines
of its image and the values of its inline secrets are in its environment. What only Modal's workers do is played here,
and this is the whole list: values of named secrets come from the caller, volumes are whatever lies at their mount
paths, and a snapshot saves nothing, it is the wait for the restore file. GPU memory snapshots are left out: the
entrypoint waits for those on a file of Modal's sandbox.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from control_plane import CALLER, App, ControlPlane
from modal_proto import api_pb2 as pb

R = TypeVar("R")


class Process(AbstractContextManager["Process"]):
    """A Python module as a process, with its output; leaving the context kills it and its process group."""

    def __init__(self, plane: ControlPlane, module: str, *args: str, cwd: Path, env: Mapping[str, str]) -> None:
        self.plane = plane
        self.lines: list[str] = []
        self.ended = False
        self._argv = [sys.executable, "-m", module, *args]
        self._cwd = cwd
        inherited = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR") if name in os.environ}
        self._env = {**inherited, "PYTHONUNBUFFERED": "1", "MODAL_SERVER_URL": plane.url, **env}

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            self._argv,
            cwd=self._cwd,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._threads = [threading.Thread(target=work) for work in (self._pump, self._watch)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        if not self.ended:
            os.killpg(self.pid, signal.SIGKILL)
        for thread in self._threads:
            thread.join(10)
        if exc is not None:
            exc.add_note(f"output of {' '.join(self._argv[2:])}:\n{self.output}")
        assert not any(t.is_alive() for t in self._threads), f"a descendant holds the output open:\n{self.output}"
        assert self._process.stdout
        self._process.stdout.close()

    def _pump(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            with self.plane.news:
                self.lines.append(line.rstrip("\n"))
                self.plane.news.notify_all()

    def _watch(self) -> None:
        self._process.wait()
        with self.plane.news:
            self.ended = True
            self.plane.news.notify_all()

    @property
    def pid(self) -> int:
        """The process, and the leader of its group."""
        return self._process.pid

    @property
    def output(self) -> str:
        """What it wrote so far, both streams in one."""
        return "\n".join(self.lines)

    @property
    def returncode(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.returncode

    def until(self, seen: Callable[[], R], limit_s: float, what: str) -> R:
        """Waits for something that the process does; its end is the end of waiting."""
        ends = time.monotonic() + limit_s
        with self.plane.news:
            while not (found := seen()):
                assert not self.ended, f"exit code {self.returncode} before {what}"
                assert self.plane.news.wait(ends - time.monotonic()), f"no sign of {what} within {limit_s} s"
        return found

    def line(self, text: str, limit_s: float = 20) -> str:
        """The first line of output that contains a text."""
        return self.until(lambda: next((x for x in self.lines if text in x), None), limit_s, repr(text)) or ""

    def wait(self, limit_s: float = 20) -> int:
        """Its exit code, once it ended."""
        self.until(lambda: self.ended, limit_s, "its end")
        return self._process.returncode


class Cli(Process):
    """`modal ARGS`, with credentials for the plane and with none of the caller's settings."""

    def __init__(self, plane: ControlPlane, *args: str, cwd: Path, env: Mapping[str, str] | None = None) -> None:
        settings = {
            "HOME": str(cwd),
            "MODAL_CONFIG_PATH": os.devnull,
            "MODAL_TOKEN_ID": "ak-local",
            "MODAL_TOKEN_SECRET": "as-local",
            "TERM": "dumb",
            "COLUMNS": "200",
        }
        super().__init__(plane, "modal", *args, cwd=cwd, env={**settings, **(env or {})})


class Container(Process):
    """The real entrypoint, for a deployed function.

    Args:
        plane: Where the function was deployed.
        name: The function's, or the server class's.
        home: A directory of the container's own; its /root is made below.
        app: The app that it belongs to; may be left out where the plane has one.
        env: What Modal would set from named secrets, and what a test adds; wins over the image's.
        snapshot: Whether Modal takes a snapshot of this one, if the function allows snapshots.
    """

    def __init__(
        self,
        plane: ControlPlane,
        name: str,
        home: Path,
        *,
        app: App | None = None,
        env: Mapping[str, str] | None = None,
        snapshot: bool = True,
    ) -> None:
        app = app or plane.app()
        self.task_id = plane.new_id("ta")
        self.root = home / self.task_id / "root"
        self.function = pb.Function.FromString(app.functions[name].SerializeToString())
        self.function.is_checkpointing_function = self.function.checkpointing_enabled  # set by Modal's servers
        self._restore_file = self.root.with_name("restore-state.json")
        self.root.mkdir(parents=True)
        for path, content in plane.sources(self.function).items():
            target = self.root.parent / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        arguments = self.root.with_name("arguments")
        arguments.write_bytes(
            pb.ContainerArguments(
                task_id=self.task_id,
                function_id=app.function_ids[name],
                app_id=app.app_id,
                function_def=self.function,
                checkpoint_id="ch-" + self.task_id,
                environment_name="main",
                app_layout=plane.layout(app),
            ).SerializeToString()
        )
        values = {"HOME": str(self.root), **plane.image_env(self.function.image_id)}
        for secret_id in self.function.secret_ids:
            values |= plane.secrets[secret_id].env_dict
        values |= env or {}
        values |= {
            "PYTHONPATH": os.pathsep.join(filter(None, [str(self.root), values.get("PYTHONPATH")])),
            "MODAL_IS_REMOTE": "1",
            "MODAL_TASK_ID": self.task_id,
            "MODAL_CONTAINER_ARGUMENTS_PATH": str(arguments),
            "MODAL_RESTORE_STATE_PATH": str(self._restore_file),
            "MODAL_OVERRIDE_HEADERS": f"{CALLER}:{self.task_id}",
        }
        if snapshot and self.function.is_checkpointing_function:
            values["MODAL_ENABLE_SNAP_RESTORE"] = "1"
        super().__init__(plane, "modal._container_entrypoint", cwd=self.root, env=values)

    def checkpoint(self, limit_s: float = 20) -> None:
        """Waits until the container asks for its snapshot: every `enter(snap=True)` is over."""
        self._called("ContainerCheckpoint", limit_s)

    def restore(self, **state: str) -> None:
        """Lets it go on as a restored container; the fields are those of Modal's restore state, such as `task_id`."""
        draft = self._restore_file.with_suffix(".draft")
        draft.write_text(json.dumps(state))
        draft.rename(self._restore_file)  # the entrypoint looks every 10 ms and must not find half of it

    def ready(self, limit_s: float = 20) -> None:
        """Waits until it has registered its port and listens to SIGTERM."""
        ends = time.monotonic() + limit_s
        self._called("ContainerServerLifecycleReady", limit_s)
        while not self._handles(signal.SIGTERM):  # the entrypoint installs its handler after the registration
            assert not self.ended, f"exit code {self.returncode} before it listened to SIGTERM"
            assert time.monotonic() < ends, f"it did not listen to SIGTERM within {limit_s} s"
            time.sleep(0.002)

    def terminate(self) -> None:
        """SIGTERM to the entrypoint alone, as Modal sends it."""
        self._process.send_signal(signal.SIGTERM)

    def failure(self, limit_s: float = 20) -> pb.GenericResult:
        """The failure that the container reported: the traceback of a hook, or of the import."""
        result: pb.GenericResult = self._called("TaskResult", limit_s)[0].result
        return result

    def _called(self, rpc: str, limit_s: float) -> list[Any]:
        return self.until(lambda: self.plane.seen(rpc, self.task_id), limit_s, rpc)

    def _handles(self, number: signal.Signals) -> bool:
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False
        caught = re.search(r"^SigCgt:\s*(\w+)", status, re.MULTILINE)
        return bool(caught and int(caught[1], 16) >> (number - 1) & 1)


def deploy(
    plane: ControlPlane, *args: str, cwd: Path, env: Mapping[str, str] | None = None, limit_s: float = 40
) -> Cli:
    """`modal deploy ARGS`, run to its end: look at `returncode`, `output`, and what the plane recorded."""
    with Cli(plane, "deploy", *args, cwd=cwd, env=env) as cli:
        cli.wait(limit_s)
    return cli


def run(
    plane: ControlPlane, *args: str, cwd: Path, home: Path, env: Mapping[str, str] | None = None, limit_s: float = 40
) -> tuple[Cli, list[Container]]:
    """`modal run ARGS`, run to its end; each function call that it makes gets a container below `home`."""
    containers: list[Container] = []
    earlier = len(plane.seen("FunctionMap"))

    def unanswered() -> list[Any]:
        return plane.seen("FunctionMap")[earlier + len(containers) :]

    with Cli(plane, "run", *args, cwd=cwd) as cli:
        while True:
            cli.until(lambda: cli.ended or unanswered(), limit_s, "a function call")
            if not (calls := unanswered()):
                return cli, containers
            app, name = plane.owner(calls[0].function_id)
            with Container(plane, name, home, app=app, env=env) as container:
                containers.append(container)
                container.wait(limit_s)
