"""The program in the sandbox, for a Modal entry: deployed, and run by Modal's own container entrypoint, to its stop.

    python -m modal_entry.rehearsal.inside ENTRY.py --exchange DIR [--env KEY=VALUE ...]

The control plane lives in here too, so that a checkpoint saves both ends of every connection. Stages go to stdout; the
output of `modal deploy` and the container's log go to stderr as they come.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import anyio
from modal_proto import api_pb2 as pb

from hooks.auth import AuthCheck, AuthError
from hooks.http.answer import BadAnswer
from hooks.http.chat import chat
from hooks.http.endpoint import Endpoint
from modal_entry.rehearsal.container import Container, HookFailed
from modal_entry.rehearsal.control_plane import ControlPlane
from modal_entry.rehearsal.programs import ProgramFailed, deploy
from modal_entry.serving.volumes import BUILDS, BUILDS_NAME, MODELS, MODELS_NAME
from supervisor import errors
from supervisor.child import Child
from supervisor.errors import ProfileError, SupervisorError
from supervisor.loading import variables
from supervisor.redact import Redactor, Secret
from supervisor.rehearsal.log import LoggedEvent, for_people
from supervisor.rehearsal.stages import announce, await_restore

__all__ = ["modal_inside"]

_KEY: Final = "API_KEY"
_JSON_LOG: Final = {"WARMBOOT_LOG_FORMAT": "json"}  # the server class reads it; `_Log` reads what it writes
_PROMPT: Final = "Write one sentence about the sea."
_MAX_TOKENS: Final = 8
_DEPLOY_S: Final = 300.0
_LOG_S: Final = 20.0  # for lines that were written before what they are about was reported
_EXIT_S: Final = 30.0  # on top of the grace period, which is the exit hook's


def modal_inside(entry: Path, exchange: Path, given: Mapping[str, str]) -> int:
    """Runs the whole life, announcing its stages; returns the exit code.

    Args:
        entry: the file with the one `@app.server` class.
        exchange: the folder that both sides see.
        given: variables for the deploy and the container, values of secrets among them.
    """
    during, redact = "start", Redactor(())
    announce("starting")
    _to_stderr("rehearsal: `modal deploy` to a control plane in the sandbox; nothing leaves this machine")
    try:
        with (
            tempfile.TemporaryDirectory(prefix="warmboot-modal-") as name,
            ControlPlane(any_secret=True, folders={BUILDS_NAME: BUILDS, MODELS_NAME: MODELS}) as plane,
        ):
            function = _deployed(plane, entry, Path(name), given)
            announce("deployed")
            secrets = _secret_values(plane, function, given)
            redact = Redactor(Secret(value, name=key) for key, value in secrets.items())
            env, log = {**given, **secrets, **_JSON_LOG}, _Log()
            start_s, stop_s = function.http_config.startup_timeout, function.http_config.exit_grace_period + _EXIT_S
            with Container(plane, function.function_name, Path(name), env=env, on_line=log) as container:
                container.await_unless_failed(lambda: log.has("child.ready"), start_s, "child.ready")
                announce("ready")
                during, began = "seal", time.monotonic()
                container.checkpoint(start_s)
                announce("sealed", took_s=time.monotonic() - began)
                changed = await_restore(exchange)
                # Every limit from here on begins here: the clock has jumped.
                announce("restored")
                during, began, before = "resume", time.monotonic(), len(log.events)
                container.restore(task_id=plane.new_id("ta"), **_carried(changed))
                container.registered(start_s)
                took_s = time.monotonic() - began
                healed, reason = _healing(container, log, before)
                announce("resumed", took_s=took_s, healed=healed, reason=reason)
                during, began = "answer", time.monotonic()
                text = anyio.run(_ask, function.http_config.port, secrets[_KEY])
                announce("answered", took_s=time.monotonic() - began, text=redact(text))
                during = "stop"
                container.listening()
                took_s = _stop(container, stop_s)
            announce("stopped", took_s=took_s)
    except (SupervisorError, BadAnswer, AuthError) as error:
        return _failed(during, error, redact)
    except Exception as error:  # noqa: BLE001  whatever it is, the other side must hear of it
        _to_stderr(traceback.format_exc())
        return _failed(during, error, redact)
    return 0


def _deployed(plane: ControlPlane, entry: Path, home: Path, given: Mapping[str, str]) -> pb.Function:
    """The one server among the functions that the entry deploys, as Modal received it."""
    env = {**given, "HOME": str(home)}
    cli = deploy(plane, str(entry.resolve()), cwd=Path.cwd(), env=env, limit_s=_DEPLOY_S, on_line=_to_stderr)
    if cli.returncode:
        raise cli.failed(f"exited with code {cli.returncode}")
    servers = [function for function in plane.app().functions.values() if function.is_server]
    if len(servers) != 1:
        seen = ", ".join(sorted(function.function_name for function in servers)) or "none"
        allowed = f"a file with one @app.server class (it has: {seen})"
        raise ProfileError(field="ENTRY", value=str(entry), allowed=allowed)
    return servers[0]


def _secret_values(plane: ControlPlane, function: pb.Function, given: Mapping[str, str]) -> dict[str, str]:
    """The keys that the server's secrets must hold, from what was given, or else from this environment."""
    secrets = [plane.secrets[secret_id] for secret_id in function.secret_ids]
    wanted = {key: secret.deployment_name for secret in secrets for key in secret.required_keys}
    values = {}
    for key, secret in {_KEY: "", **wanted}.items():
        values[key] = given.get(key, os.environ.get(key, ""))
        if not values[key].strip():
            whose = (
                f"the entry's secret {secret!r} holds it on Modal" if secret else "no endpoint is opened by accident"
            )
            allowed = f"not blank, because {whose}. Give it with --env {key}=VALUE"
            raise ProfileError(field=key, value=values[key], allowed=allowed)
    return values


def _carried(changed: Mapping[str, str]) -> dict[str, str]:
    """The part of a changed environment that Modal's restore state can carry."""
    carried = {name: value for name, value in changed.items() if name == name.upper() and value}
    if left := sorted(changed.keys() - carried.keys()):
        _to_stderr(f"not changed, because Modal's restore state carries no such name or value: {', '.join(left)}")
    return carried


class _Log:
    """The container's log: goes on to stderr; the events in it are remembered."""

    def __init__(self) -> None:
        self.events: list[LoggedEvent] = []

    def __call__(self, line: str) -> None:
        _to_stderr(line)
        if (event := LoggedEvent.of(line)) is not None:
            self.events.append(event)

    def has(self, *names: str, since: int = 0) -> bool:
        return any(event.name in names for event in self.events[since:])


def _healing(container: Container, log: _Log, since: int) -> tuple[bool, str]:
    """Whether the server was replaced after so many events, and why."""
    # The log is written by a thread of its own, and may be behind what the container has reported.
    done = ("child.resumed", "child.ready")
    container.await_unless_failed(lambda: log.has(*done, since=since), _LOG_S, " or ".join(done))
    reason = ""
    for event in log.events[since:]:
        match event.name:
            case "step.failed":
                reason = event.fields.get("reason", "")
            case "supervision.failed":
                reason = f"{event.fields.get('error', '')}: {event.fields.get('detail', '')}"
            case "child.restarting":
                return True, reason
    return False, ""


async def _ask(port: int, key: str) -> str:
    """What a user would ask first; and whether a stranger is refused."""
    child: Child = Endpoint(url=f"http://127.0.0.1:{port}", api_key=Secret(key, name=_KEY)).visit()
    text = (await chat(child, _PROMPT, _MAX_TOKENS, None)).content()
    await AuthCheck()(child)
    return text


def _stop(container: Container, limit_s: float) -> float:
    """SIGTERM, as Modal sends it; returns how long the rest took, seconds."""
    began = time.monotonic()
    container.terminate()
    if code := container.wait(limit_s):
        raise container.failed(f"exited with code {code} after SIGTERM, instead of 0")
    return time.monotonic() - began


def _failed(during: str, error: Exception, redact: Redactor) -> int:
    if isinstance(error, ProgramFailed):
        error.tail = tuple(map(for_people(), error.tail))
    kind, detail, status = type(error).__name__, str(error), getattr(error, "cli_status", 1)
    if isinstance(error, HookFailed):
        kind, detail = error.error, error.detail
        cause = getattr(errors, kind, None)
        status = cause.cli_status if isinstance(cause, type) and issubclass(cause, SupervisorError) else 1
    point = re.match(r"(\w+) step '", detail) if kind == "StepFailed" else None
    announce("failed", during=during, error=kind, detail=redact(detail), point=point and point[1], status=status)
    return int(status)


def _to_stderr(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it any more: no reason to stop
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="modal_inside", allow_abbrev=False)
    parser.add_argument("entry", type=Path)
    parser.add_argument("--exchange", type=Path, required=True)
    parser.add_argument("--env", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    try:
        found = variables(arguments.env)
    except ProfileError as error:
        return _failed("start", error, Redactor(()))
    given = {name: value.reveal() if isinstance(value, Secret) else value for name, value in found.items()}
    return modal_inside(arguments.entry, arguments.exchange, given)


if __name__ == "__main__":
    sys.exit(main())
