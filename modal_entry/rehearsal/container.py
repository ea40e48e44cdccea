"""Modal's container entrypoint, for a function as it was deployed to a local control plane; and `modal run`.

The mounted sources and nothing else make up the container's /root; `ENV` lines of its image and the values of its
inline secrets are in its environment. What only Modal's workers do is played here, and this is the whole list: values
of named secrets come from the caller, volumes are whatever lies at their mount paths, and a snapshot saves nothing: it
is the wait for the restore file, during which a sandbox around all of this may be saved and restored. GPU memory
snapshots are left out: the entrypoint waits for those on a file of Modal's sandbox.
"""

from __future__ import annotations

import ast
import json
import os
import re
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from modal_proto import api_pb2 as pb

from modal_entry.rehearsal.control_plane import CALLER, App, ControlPlane
from modal_entry.rehearsal.programs import Cli, OnLine, Process
from supervisor.errors import SupervisorError

__all__ = ["Container", "HookFailed", "run"]

R = TypeVar("R")

# gVisor's /proc does not show handlers; the entrypoint listens a few ms after the registration.
_SOON_LISTENS_S: Final = 0.5


@dataclass(eq=False, repr=False, kw_only=True)
class HookFailed(SupervisorError):
    """A lifecycle hook, or the import of the entry, raised; as the container reported it to Modal.

    Attributes:
        error: the class of what it raised.
        detail: the text of that.
    """

    error: str
    detail: str

    @classmethod
    def of(cls, result: pb.GenericResult) -> Self:
        """From the report, whose `exception` is the repr of what was raised."""
        match = re.fullmatch(r"([\w.]+)\((.*)\)", result.exception, re.DOTALL)
        if match is None:
            return cls(error="Exception", detail=result.exception)
        try:
            detail = ast.literal_eval(match[2])
        except (ValueError, SyntaxError):  # more than one argument, or none
            detail = match[2]
        return cls(error=match[1], detail=str(detail))

    @property
    def summary(self) -> str:
        return f"the container reported {self.error}: {self.detail}"


class Container(Process):
    """The real entrypoint, for a deployed function.

    Args:
        plane: Where the function was deployed.
        name: The function's, or the server class's.
        home: A directory of the container's own; its /root is made below.
        app: The app that it belongs to; may be left out where the plane has one.
        env: What Modal would set from named secrets, and what the caller adds; wins over the image's.
        snapshot: Whether Modal takes a snapshot of this one, if the function allows snapshots.
        on_line: See `Process`.
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
        on_line: OnLine | None = None,
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
        super().__init__(plane, "modal._container_entrypoint", cwd=self.root, env=values, on_line=on_line)

    def checkpoint(self, limit_s: float = 20) -> None:
        """Waits until the container asks for its snapshot: every `enter(snap=True)` is over.

        Raises:
            HookFailed: one of them raised.
            ProgramFailed: the container ended before, or `limit_s` passed.
        """
        self.await_unless_failed(lambda: self._called("ContainerCheckpoint"), limit_s, "its checkpoint")

    def restore(self, **state: str) -> None:
        """Lets it go on as a restored container.

        Args:
            state: Modal's restore state. `task_id` and other settings of Modal's set `MODAL_<NAME>` in the container's
                environment, every other key sets itself in capitals; an empty value changes nothing.
        """
        draft = self._restore_file.with_suffix(".draft")
        draft.write_text(json.dumps(state))
        draft.rename(self._restore_file)  # the entrypoint looks every 10 ms and must not find half of it

    def registered(self, limit_s: float = 20) -> None:
        """Waits until it has registered its port: every `enter(snap=False)` is over. Raises as `checkpoint` does."""
        self.await_unless_failed(
            lambda: self._called("ContainerServerLifecycleReady"), limit_s, "the registration of its port"
        )

    def listening(self, limit_s: float = 20) -> None:
        """Waits until a registered one listens to SIGTERM, which it does a moment later."""
        ends = time.monotonic() + limit_s
        while (listens := self._handles(signal.SIGTERM)) is False:
            if self.ended:
                raise self.failed(f"ended with exit code {self.returncode} before it listened to SIGTERM")
            if time.monotonic() >= ends:
                raise self.failed(f"did not listen to SIGTERM within {limit_s:g} s")
            time.sleep(0.002)
        if listens is None:
            time.sleep(_SOON_LISTENS_S)

    def ready(self, limit_s: float = 20) -> None:
        """Waits until it has registered its port and listens to SIGTERM."""
        self.registered(limit_s)
        self.listening(limit_s)

    def terminate(self) -> None:
        """SIGTERM to the entrypoint alone, as Modal sends it."""
        self._process.send_signal(signal.SIGTERM)

    def failure(self, limit_s: float = 20) -> pb.GenericResult:
        """The failure that the container reported: the traceback of a hook, or of the import."""
        result: pb.GenericResult = self.until(lambda: self._called("TaskResult"), limit_s, "a failure")[0].result
        return result

    def await_unless_failed(self, seen: Callable[[], R], limit_s: float, what: str) -> R:
        """`until`, but a failure that the container reports ends the wait. Raises as `checkpoint` does."""

        def look() -> R:
            if not (found := seen()) and (reports := self._called("TaskResult")):
                raise HookFailed.of(reports[0].result)
            return found

        return self.until(look, limit_s, what)

    def _called(self, rpc: str) -> list[Any]:
        return self.plane.seen(rpc, self.task_id)

    def _handles(self, number: signal.Signals) -> bool | None:
        """Whether it catches a signal; None: /proc does not show it."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return False
        if (caught := re.search(r"^SigCgt:\s*(\w+)", status, re.MULTILINE)) is None:
            return None
        return bool(int(caught[1], 16) >> (number - 1) & 1)


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
