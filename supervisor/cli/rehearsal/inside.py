"""The program in the sandbox, for a profile: the `Daemon` from cold start to stop, as Modal's hooks drive it."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from hooks.contract import Finding, SnapshotContract
from supervisor import events
from supervisor.cli.rehearsal.report import NOTE
from supervisor.cli.rehearsal.stages import await_restore, tell
from supervisor.contract import Child, Hooks, Observer, Step
from supervisor.daemon import Daemon
from supervisor.errors import SupervisorError
from supervisor.profile import Profile
from supervisor.sink import Sink

__all__ = ["inside"]

_QUESTION = "Write one sentence about the sea."


def inside(profile: Profile, hooks: Hooks, exchange: Path) -> int:
    """Runs the whole life, telling its stages; returns the exit code."""
    healing = _Healing()
    during = "start"
    with Sink(sys.stderr) as sink:
        before_seal = tuple(_telling(step, sink) for step in hooks.before_seal)
        observers: tuple[Observer, ...] = (*hooks.observers, sink, healing)
        daemon = Daemon(profile, replace(hooks, before_seal=before_seal, observers=observers))
        try:
            tell("starting")
            daemon.start()
            tell("ready")
            during, began = "seal", time.monotonic()
            daemon.seal()
            tell("sealed", took_s=time.monotonic() - began)
            os.environ.update(await_restore(exchange))
            tell("restored")
            during, began = "resume", time.monotonic()
            daemon.resume()
            tell("resumed", took_s=time.monotonic() - began, healed=bool(healing.reason), reason=healing.reason)
            during, began = "answer", time.monotonic()
            text = _ask(daemon.supervised.child, chat=bool(hooks.warmup))
            tell("answered", took_s=time.monotonic() - began, text=text)
            during, began = "stop", time.monotonic()
            daemon.stop()
            tell("stopped", took_s=time.monotonic() - began)
        except SupervisorError as error:
            daemon.stop()
            sink.flush()
            point = getattr(error, "point", None)
            kind = type(error).__name__
            tell("failed", during=during, error=kind, detail=error.summary, point=point, status=error.cli_status)
            return error.cli_status
    return 0


def _telling(step: Step, sink: Sink) -> Step:
    """The contract, made to tell what it finds also when that is no error."""
    if not isinstance(step, SnapshotContract) or step.on_findings is not None:
        return step

    def note(findings: tuple[Finding, ...]) -> None:
        for finding in findings:
            sink.say(f"{NOTE}{finding}")

    return replace(step, on_findings=note)


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
                self.reason = self._failure


def _ask(child: Child, *, chat: bool) -> str:
    """What a user would ask first: a chat, or, of a server that is no model's, its health."""
    import httpx

    key = child.profile.api_key
    limit_s = child.profile.timeouts.step_s
    headers = {"Authorization": f"Bearer {key.reveal()}"} if key else {}
    with httpx.Client(base_url=child.url, headers=headers, timeout=limit_s, trust_env=False) as client:
        if not chat:
            return f"HTTP {client.get(child.profile.health.path).status_code}"
        body = {
            "model": child.profile.health.model_id or "default",
            "messages": [{"role": "user", "content": _QUESTION}],
            "max_tokens": 16,
            "temperature": 0,
        }
        answer = client.post("/v1/chat/completions", json=body)
        message = answer.raise_for_status().json()["choices"][0]["message"]
        return child.redact(str(message.get("content") or message.get("reasoning_content") or ""))
