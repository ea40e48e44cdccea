"""Supervise for a command: signal handling, the log, the summary at READY, the exit code and the last line."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Final

import anyio

from supervisor import events
from supervisor.cli.exits import account, only_part
from supervisor.cli.notify import Notifier
from supervisor.cli.seals import seal_on_signals, with_findings
from supervisor.cli.signals import Signals
from supervisor.control.server import serve as serve_control
from supervisor.control.subject import Subject
from supervisor.dialect import Request
from supervisor.errors import SupervisorError
from supervisor.events import Event
from supervisor.lifecycle.supervise import supervise
from supervisor.logs.clean import clean
from supervisor.logs.sink import LogFormat, Sink
from supervisor.process.orphans import Orphans
from supervisor.profile import Profile
from supervisor.steps import Hooks, Observer
from supervisor.timing.racing import alongside

_CHAT: Final = {"messages": [{"role": "user", "content": "Write one sentence about the sea."}], "max_tokens": 48}
_FLUSH_S: Final = 1.0  # for the last line, on a terminal or pipe that may be blocked


def run(
    profile: Profile, hooks: Hooks, *, log_format: LogFormat, key_variable: str | None, first: tuple[Event, ...] = ()
) -> int:
    """Supervises until a signal or a failure; returns the exit code. Its last line says how it ended.

    Args:
        profile, hooks: what to supervise.
        log_format: of the log on stderr.
        key_variable: the name of the key's variable, for the summary.
        first: events to log before all others.
    """
    began = time.monotonic()
    notifier = Notifier()
    with Sink(sys.stderr, log_format) as sink:

        def say_last(status: int, error: Exception | None, detail: str, trace: str = "") -> None:
            if log_format == "console":
                sink.say(f"{trace}supervise: {detail}")
            else:
                sink.say(_exit_entry(status, error, trace + detail, time.monotonic() - began))

        def end_at_once(number: int) -> None:
            name = signal.Signals(number).name
            say_last(128 + number, None, f"{profile.name} is killed at once: a second signal came ({name}).")
            sink.flush(_FLUSH_S)
            os._exit(128 + number)  # the guardian kills the child's group as soon as we are gone

        for event in first:
            sink(replace(event, unix_s=time.time()))
        subject = Subject(profile, sink)
        hooks = replace(hooks, before_seal=tuple(with_findings(step, subject.notice) for step in hooks.before_seal))
        observers: list[Observer] = [*hooks.observers, sink, notifier, subject]
        if log_format == "console":
            observers.append(Summary(profile, sink, key_variable))
        signals = Signals(end_at_once, asks=True)
        error: Exception | None = None
        try:
            error = anyio.run(
                _serve, profile, replace(hooks, observers=tuple(observers)), notifier, signals, Orphans(), subject
            )
        except Exception as defect:  # noqa: BLE001  whatever it is, it ends in words and in an exit code
            error = only_part(defect)
        finally:
            signals.close()
            notifier.close()
        if error is None:
            status = 0
            say_last(status, None, f"{profile.name} stopped as asked, after {time.monotonic() - began:.1f} s.")
        else:
            status, detail, trace = account(error)
            say_last(status, error, detail, trace)
    return status


async def _serve(
    profile: Profile, hooks: Hooks, notifier: Notifier, signals: Signals, orphans: Orphans, subject: Subject
) -> SupervisorError | None:
    supervision = anyio.CancelScope()

    async def listen() -> None:
        await signals.stop_requested()
        supervision.cancel()

    try:
        async with alongside(
            *(listen, notifier.ping, notifier.extend_start, orphans.tend),
            *(partial(seal_on_signals, signals, subject), partial(serve_control, subject)),
        ):
            with supervision:
                await supervise(profile, hooks, task_status=subject)
    except SupervisorError as error:
        return error
    finally:
        signals.end()
    return None


class Summary:
    """An observer that tells a person, at READY, where the server is and how to talk to it."""

    def __init__(self, profile: Profile, sink: Sink, key_variable: str | None) -> None:
        self._profile = profile
        self._sink = sink
        self._key_variable = key_variable
        self._warmups = 0
        self._loaded_s = 0.0

    def __call__(self, event: Event) -> None:
        """Counts what passes, and speaks at READY."""
        match event:
            case events.ChildSpawned():
                self._warmups = 0
            case events.ChildUp():
                self._loaded_s = event.waited_s
            case events.WarmupPassed():
                self._warmups += 1
            case events.ChildReady():
                warm = event.waited_s - self._loaded_s
                self._sink.say(
                    f"\n  ready  {event.url}  ({self._profile.name}, pid {event.pid})\n"
                    f"  took   {self._loaded_s:.2f} s to load, {warm:.2f} s for {self._warmups} warmup step(s)\n"
                    f"  try    {self._curl(event.url)}\n"
                    "  stop   Ctrl-C, or SIGTERM\n"
                )

    def _curl(self, url: str) -> str:
        """Return a command that shows something sensible: the engine's example, a chat, or the health of no model."""
        dialect, model_id = self._profile.dialect, self._profile.health.model_id
        example = dialect.example or (Request(path=dialect.chat_path, body=_CHAT) if dialect.chat_path else None)
        if example is None or not (self._warmups or model_id):
            return f"curl -s {url}{self._profile.health.path}"
        body = {"model": model_id or "default", **example.body}
        key = ' -H "Authorization: Bearer $%s"' % (self._key_variable or "API_KEY") if self._profile.api_key else ""
        data = shlex.quote(json.dumps(body))
        return f"curl -s {url}{example.path} -H 'Content-Type: application/json'{key} -d {data}"


def _exit_entry(status: int, error: Exception | None, detail: str, took_s: float) -> str:
    entry = {
        "event": "supervise.exit",
        "level": "error" if error else "warning" if status else "info",
        "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "elapsed_s": round(took_s, 4),
        "exit_status": status,
        "error": type(error).__name__ if error else None,
        "detail": clean(detail),
    }
    return json.dumps(entry)
