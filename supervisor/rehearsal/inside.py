"""The program in the sandbox, for a profile: the `Daemon` from cold start to stop, as Modal's hooks drive it."""

from __future__ import annotations

import os
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Final

import anyio

from hooks.contract.findings import telling
from hooks.contract.step import SnapshotContract
from hooks.http.answer import BadAnswer
from hooks.http.ask import ask
from hooks.http.chat import chat, model_of
from supervisor import events
from supervisor.child import Child
from supervisor.errors import SupervisorError
from supervisor.lifecycle.daemon import Daemon
from supervisor.logs.sink import Sink
from supervisor.profile import Profile
from supervisor.rehearsal.event_loop import POLLING, polling
from supervisor.rehearsal.request import RehearsalRequest
from supervisor.rehearsal.stages import announce, await_restore
from supervisor.rehearsal.subject import prepared
from supervisor.steps import Hooks, Observer, Step

__all__ = ["inside"]

_QUESTION: Final = "Write one sentence about the sea."
_MAX_TOKENS: Final = 16


def inside(profile: Profile, hooks: Hooks, request: RehearsalRequest, exchange: Path) -> int:
    """Runs the whole life, announcing its stages; returns the exit code."""
    profile, hooks = prepared(polling(profile) if POLLING in os.environ else profile, hooks, request)
    healing = _Healing()
    during = "start"
    with Sink(sys.stderr, "json") as sink:  # read by the program outside
        before_seal = tuple(_with_findings(step, sink) for step in hooks.before_seal)
        observers: tuple[Observer, ...] = (*hooks.observers, sink, healing)
        daemon = Daemon(profile, replace(hooks, before_seal=before_seal, observers=observers))
        try:
            announce("starting")
            daemon.start()
            announce("ready")
            during, began = "seal", time.monotonic()
            daemon.seal()
            announce("sealed", took_s=time.monotonic() - began)
            os.environ.update(await_restore(exchange))
            announce("restored")
            healing.reason = ""  # a restart before is another matter
            during, began = "resume", time.monotonic()
            daemon.resume()
            announce("resumed", took_s=time.monotonic() - began, healed=bool(healing.reason), reason=healing.reason)
            during, began = "answer", time.monotonic()
            text = anyio.run(_ask, daemon.supervised.child, bool(hooks.warmup))
            announce("answered", took_s=time.monotonic() - began, text=text)
            during, began = "stop", time.monotonic()
            daemon.stop()
            announce("stopped", took_s=time.monotonic() - began)
        except Exception as error:  # noqa: BLE001  whatever it is, the other side must hear of it
            daemon.stop()
            if not isinstance(error, SupervisorError | BadAnswer):
                sink.say(traceback.format_exc())
            sink.flush()
            # Of several lives in a row, the first one's end is the restore's doing.
            first = f"{healing.reason} The cold start in its place failed too: " if healing.reason else ""
            detail = first + (error.summary if isinstance(error, SupervisorError) else str(error))
            status = error.cli_status if isinstance(error, SupervisorError) else 4
            kind, point = type(error).__name__, getattr(error, "point", None)
            announce("failed", during=during, error=kind, detail=detail, point=point, status=status)
            return status
    return 0


def _with_findings(step: Step, sink: Sink) -> Step:
    """The contract as a Step that writes its warnings to the log too; any other Step as it is."""
    if not isinstance(step, SnapshotContract) or step.on_findings is not None:
        return step
    return replace(step, on_findings=telling(sink.say))


class _Healing:
    """An observer that remembers why a child was replaced; empty while none was."""

    def __init__(self) -> None:
        self._failure = ""
        self.reason = ""

    def __call__(self, event: events.Event) -> None:
        match event:
            case events.ChildResumed() | events.ChildReady():
                self._failure = ""
            case events.Failed():
                self._failure = f"{event.error}: {event.detail}"
            case events.ChildRestarting():
                self.reason = self.reason or self._failure


async def _ask(child: Child, is_model: bool) -> str:
    """What a user would ask first: the engine's example, or a chat; of any other server, its health."""
    dialect = child.profile.dialect
    if not is_model or (dialect.chat_path is None and dialect.example is None):
        return f"HTTP {(await ask(child, child.profile.health.path)).status}"
    if (example := dialect.example) is None:
        return (await chat(child, _QUESTION, _MAX_TOKENS, None)).written()
    few = {"max_tokens": _MAX_TOKENS} if "max_tokens" in example.body else {}
    answer = await ask(child, example.path, {"model": model_of(child), **example.body, **few})
    if example.path == dialect.completions_path:
        return answer.text({"text": answer.choice().get("text")})
    if example.path == dialect.chat_path:
        return answer.written()
    answer.data()  # it must be a good answer; its content is nothing to show
    return f"HTTP {answer.status}"
