"""What to run and how to judge it: `Profile` and its parts. Frozen, validated at construction, no I/O.

Times are seconds (`_s`), sizes are bytes (`_bytes`). A wrong value raises `ProfileError`, which names the field, the
value and what is allowed.

Over 250 lines because a profile is read in one place, parts and limits included.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from supervisor.errors import ProfileError
from supervisor.events import Level
from supervisor.redact import Secret

Accept = Callable[[int, str], str | None]
"""Judges a health answer: (HTTP status, body) -> None when the server is up, else why not, in a few words."""

ParseLine = Callable[[str], tuple[Level, str]]
"""Reads an engine's log line: text -> (level, text to show)."""


def _check(ok: bool, name: str, value: object, allowed: str) -> None:
    if not ok:
        raise ProfileError(field=name, value=value, allowed=allowed)


def _seconds(name: str, value: float, *, low: float = 0.0, high: float = 86_400.0) -> None:
    ok = _number(value) and math.isfinite(value) and low < value <= high
    _check(ok, name, value, f"seconds, more than {low:g} and at most {high:g}")


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(name: str, value: int, low: int, high: int) -> None:
    _check(
        _number(value) and isinstance(value, int) and low <= value <= high,
        name,
        value,
        f"a whole number from {low} to {high}",
    )


def _pattern(name: str, value: str | None) -> None:
    if value is None:
        return
    try:
        re.compile(value)
    except re.error as error:
        raise ProfileError(field=name, value=value, allowed=f"a regular expression ({error})") from error


def accept_200(status: int, body: str) -> str | None:
    """The default judgement: 200 is up; a JSON body's message, if there is one, says why not."""
    return None if status == 200 else f"HTTP {status}: {' '.join(body.split())[:200] or 'empty body'}"


def plain_line(line: str) -> tuple[Level, str]:
    """The default reading of a log line: JSON objects give their own level and message, the rest is `info`."""
    if line.startswith("{"):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            return "info", line
        said = str(entry.get("level") or entry.get("severity") or entry.get("lvl") or "info").lower()
        text = entry.get("msg") or entry.get("message") or entry.get("event")
        return LEVELS.get(said, "info"), line if text is None else str(text)
    return "info", line


LEVELS: Mapping[str, Level] = {
    "trace": "debug",
    "debug": "debug",
    "warn": "warning",
    "warning": "warning",
    "err": "error",
    "error": "error",
    "fatal": "error",
    "critical": "error",
    "panic": "error",
}
"""Names of levels as engines write them; a name that is not here means info."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How to tell that the server is up, and that it is ours.

    Attributes:
        path: polled with GET.
        accept: judges status *and* body.
        model_id: what `identity_path` must list (OpenAI's `data[].id`, or an alias); None: not checked.
        ready_pattern: a log line that matches makes the next probe happen at once; never proof by itself.
        poll_min_s, poll_max_s: probes start at the first interval and slow down to the second.
        log_every: one `health.waiting` event every so many failed probes.
    """

    path: str = "/health"
    accept: Accept = accept_200
    model_id: str | None = None
    identity_path: str = "/v1/models"
    ready_pattern: str | None = None
    poll_min_s: float = 0.01
    poll_max_s: float = 0.05
    log_every: int = 100

    def __post_init__(self) -> None:
        _check(self.path.startswith("/"), "health.path", self.path, "a path that begins with /")
        _check(
            self.identity_path.startswith("/"), "health.identity_path", self.identity_path, "a path with a leading /"
        )
        _check(self.model_id is None or bool(self.model_id.strip()), "health.model_id", self.model_id, "not blank")
        _pattern("health.ready_pattern", self.ready_pattern)
        _seconds("health.poll_min_s", self.poll_min_s, high=60)
        _seconds("health.poll_max_s", self.poll_max_s, high=60)
        _check(self.poll_min_s <= self.poll_max_s, "health.poll_min_s", self.poll_min_s, f"<= {self.poll_max_s}")
        _count("health.log_every", self.log_every, 1, 1_000_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """Limits of waiting. None of them ever spans a snapshot.

    Attributes:
        start_s: from the spawn until health is green.
        stall_s: no byte read, no CPU used, no line logged: the load is given up.
        probe_s: one health probe.
        step_s: one Step, unless the Step has a `deadline_s` of its own.
        resume_s: from `resume()` until health is green again.
    """

    start_s: float = 600.0
    stall_s: float = 120.0
    probe_s: float = 2.0
    step_s: float = 120.0
    resume_s: float = 60.0

    def __post_init__(self) -> None:
        for name in ("start_s", "stall_s", "probe_s", "step_s", "resume_s"):
            _seconds(f"timeouts.{name}", getattr(self, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """How to end the child: the signal to its process group, `grace_s`, KILL; then at most `drain_s` for the pipes."""

    signal: signal.Signals = signal.SIGTERM
    grace_s: float = 10.0
    drain_s: float = 2.0

    def __post_init__(self) -> None:
        _check(isinstance(self.signal, signal.Signals), "stop.signal", self.signal, "a member of signal.Signals")
        _seconds("stop.grace_s", self.grace_s, high=3600)
        _seconds("stop.drain_s", self.drain_s, high=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """What follows a failed life.

    Attributes:
        policy: `never`; `on-failure` (any end that was not asked for, before or after READY); or `on-resume` (only a
            child that a resume finds dead or wrong is replaced: for hosts that the platform replaces otherwise).
        max_restarts: the budget; refilled after `reset_after_s` of uninterrupted READY.
        backoff_s, backoff_max_s: the first delay and the longest; it doubles in between.
        jitter: the part of a delay that is random, 0 to 1.
        crash_loop_after: so many lives in a row that never reached READY end it, whatever is left of the budget.
        host_exit_code: `Daemon` only. Once nothing more is tried, end the host process with this code, because nobody
            waits on a daemon's thread; None leaves the host running.
    """

    policy: Literal["never", "on-failure", "on-resume"] = "never"
    max_restarts: int = 5
    backoff_s: float = 0.5
    backoff_max_s: float = 60.0
    jitter: float = 0.1
    reset_after_s: float = 600.0
    crash_loop_after: int = 3
    host_exit_code: int | None = None

    def __post_init__(self) -> None:
        policies = ("never", "on-failure", "on-resume")
        _check(self.policy in policies, "restart.policy", self.policy, "'never', 'on-failure' or 'on-resume'")
        _count("restart.max_restarts", self.max_restarts, 0, 1_000_000)
        _seconds("restart.backoff_s", self.backoff_s, high=3600)
        _seconds("restart.backoff_max_s", self.backoff_max_s)
        _check(_number(self.jitter) and 0 <= self.jitter <= 1, "restart.jitter", self.jitter, "from 0 to 1")
        _seconds("restart.reset_after_s", self.reset_after_s)
        _count("restart.crash_loop_after", self.crash_loop_after, 1, 1_000_000)
        if self.host_exit_code is not None:
            _count("restart.host_exit_code", self.host_exit_code, 1, 255)


@dataclass(frozen=True, slots=True, kw_only=True)
class Liveness:
    """The watchdog's eyes; it is off until it is armed.

    Attributes:
        armed: `ready`: as soon as READY; `resume`: only after the first resume (hosts that snapshot); `never`.
        period_s: between two health checks.
        misses: so many failed checks in a row mean that the child hangs.
        inference_every_s: run `Hooks.liveness` Steps this often, unless real traffic moved the counters meanwhile.
        counters_path, counters_pattern: where the server counts its work, and a regular expression whose matches, taken
            together, change whenever it works; None: there are no counters, and the Steps always run.
    """

    armed: Literal["ready", "resume", "never"] = "ready"
    period_s: float = 10.0
    misses: int = 3
    inference_every_s: float = 60.0
    counters_path: str | None = None
    counters_pattern: str | None = None

    def __post_init__(self) -> None:
        _check(self.armed in ("ready", "resume", "never"), "liveness.armed", self.armed, "'ready', 'resume' or 'never'")
        _seconds("liveness.period_s", self.period_s)
        _count("liveness.misses", self.misses, 1, 1000)
        _seconds("liveness.inference_every_s", self.inference_every_s)
        _pattern("liveness.counters_pattern", self.counters_pattern)
        path = self.counters_path or "/"
        _check(path.startswith("/"), "liveness.counters_path", path, "a path that begins with /")
        both = (self.counters_path is None) == (self.counters_pattern is None)
        _check(both, "liveness.counters_path", self.counters_path, "given together with counters_pattern")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLimits:
    """Bounds of the log pump, and how to read a line.

    Attributes:
        max_line_bytes: longer lines are cut, the rest is counted as dropped.
        tail_lines: kept for errors.
        backlog_bytes: read and not yet processed, per stream; beyond it the oldest output is dropped and counted.
        parse: reads the engine's level out of a line.
    """

    max_line_bytes: int = 8192
    tail_lines: int = 20
    backlog_bytes: int = 4 * 1024 * 1024
    parse: ParseLine = plain_line

    def __post_init__(self) -> None:
        _count("logs.max_line_bytes", self.max_line_bytes, 80, 1 << 20)
        _count("logs.tail_lines", self.tail_lines, 1, 10_000)
        _count("logs.backlog_bytes", self.backlog_bytes, 1 << 16, 1 << 30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Everything about one supervised server.

    Attributes:
        name: for people and logs.
        command: argv; `{host}` and `{port}` are substituted in every argument and in every value of `env`.
        env: variables of the child; `Secret` values are masked wherever they are printed.
        inherit_env: names (or shell patterns) of the host's variables that reach the child as well.
        cwd: working directory of the child; None: the host's.
        host, port: where it listens; port 0 chooses a free one, anew when the bind races.
        api_key: sent as `Authorization: Bearer` by probes and Steps.
        api_key_env: the variable by which the child learns the key; None: it learns it some other way.
        open_access: the server is meant to answer without a key; the auth Step refuses an open server otherwise.
        weights: files that the load reads, for progress and for the snapshot contract.
    """

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str | Secret] = field(default_factory=dict)
    inherit_env: tuple[str, ...] = ("*",)
    cwd: Path | None = None
    host: str = "127.0.0.1"
    port: int = 0
    api_key: Secret | None = None
    api_key_env: str | None = None
    open_access: bool = False
    weights: tuple[Path, ...] = ()
    health: Health = field(default_factory=Health)
    timeouts: Timeouts = field(default_factory=Timeouts)
    stop: Stop = field(default_factory=Stop)
    restart: Restart = field(default_factory=Restart)
    liveness: Liveness = field(default_factory=Liveness)
    logs: LogLimits = field(default_factory=LogLimits)

    def __post_init__(self) -> None:
        _check(bool(self.name.strip()), "name", self.name, "a non-blank name")
        for part in ("command", "inherit_env", "weights"):
            # The value stays out of the message: a command line may hold a key.
            _check(not isinstance(getattr(self, part), str), part, "one string", "a tuple of strings")
        object.__setattr__(self, "command", tuple(map(os.fspath, self.command)))
        for arg in self.command:
            _check(isinstance(arg, str), "command", type(arg).__name__, "text")
        _check(any(self.command[:1]), "command", self.command, "at least a program")
        texts = {f"command[{i}]": arg for i, arg in enumerate(self.command)}
        for name, value in self.env.items():
            _check(bool(name) and "=" not in name and "\0" not in name, "env", name, "names without '=' and NUL")
            _check(isinstance(value, str | Secret), f"env[{name}]", type(value).__name__, "text or a Secret")
            texts[f"env[{name}]"] = "" if isinstance(value, Secret) else value
        for where, text in texts.items():
            _check("\0" not in text, where, text, "text without NUL")
        _check(
            bool(self.host) and "/" not in self.host and " " not in self.host, "host", self.host, "a host name or IP"
        )
        _count("port", self.port, 0, 65_535)
        if self.port == 0 and not any("{port}" in text for text in texts.values()):
            raise ProfileError(field="port", value=0, allowed="a number, or '{port}' must stand in the command or env")
        if self.api_key and not re.fullmatch(r"[!-~]+", self.api_key.reveal()):
            raise ProfileError(
                field="api_key", value=self.api_key, allowed="visible ASCII without spaces (it is a header)"
            )
        _check(not (self.open_access and self.api_key), "open_access", True, "False when an api_key is set")

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """Every secret that the profile knows, for redaction."""
        found = [value for value in self.env.values() if isinstance(value, Secret)]
        return (*found, self.api_key) if self.api_key else tuple(found)
