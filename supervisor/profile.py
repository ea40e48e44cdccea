"""What to run and how to judge it: `Profile` and its parts. Frozen, validated at construction, no I/O.

Times are seconds (`_s`), sizes are bytes (`_bytes`). A wrong value raises `ProfileError`, which names the field, the
value and what is allowed.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from supervisor import checks
from supervisor.dialect import Dialect
from supervisor.errors import ProfileError, require
from supervisor.levels import ParseLine, plain_line
from supervisor.redact import MASK, Redactor, Secret, is_secret_variable, secrets_in, secrets_named

Accept = Callable[[int, str], str | None]
"""Judges a health answer: (HTTP status, body) -> None when the server is up, else why not, in a few words."""


def accept_2xx(status: int, body: str) -> str | None:
    """The default judgement: 200 to 299 is up, whatever the body says; otherwise the body says why not.

    A server that answers 200 before it can serve needs an `accept` of its own, which reads the body.
    """
    if 200 <= status <= 299:
        return None
    # A page for browsers says less than its status, and at length.
    said = "a web page" if body.lstrip()[:1] == "<" else " ".join(body.split())[:200] or "empty body"
    return f"HTTP {status}: {said}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How to tell that the server is up, and that it is ours.

    Attributes:
        path: polled with GET.
        accept: judges status *and* body; the default takes any of 200 to 299.
        model_id: the model's name for clients; the dialect's list of models must have it before the server counts as
            up. None: not checked. An engine that holds several may load it at the first request.
        must_load: models that such an engine must have loaded before it counts as up. One that failed to load ends the
            wait at once; one that is lost later (see `ModelState`) is a failed check of the watchdog's.
        ready_pattern: a log line that matches makes the next probe happen at once; never proof by itself.
        poll_min_s, poll_max_s: probes start at the first interval and slow down to the second; None: to 0.045 without a
            `ready_pattern`, to 0.5 with one, because then the log line wakes the poll (20 probes a second cost 3 to
            5 % of a core, 2 a second less than 1 %).
        log_every: one `health.waiting` event every so many failed probes.
        allow_foreign_listener: do not check that a process of the child's listens there, because another one forwards
            to it, as docker-proxy does. Whoever else took the port after the start is then mistaken for the child.
    """

    path: str = "/health"
    accept: Accept = accept_2xx
    model_id: str | None = None
    must_load: tuple[str, ...] = ()
    ready_pattern: str | None = None
    poll_min_s: float = 0.01
    poll_max_s: float | None = None
    log_every: int = 100
    allow_foreign_listener: bool = False

    def __post_init__(self) -> None:
        checks.url_path("health.path", self.path)
        require(callable(self.accept), "health.accept", self.accept, "a function of status and body")
        named = self.model_id is None or (isinstance(self.model_id, str) and bool(self.model_id.strip()))
        require(named, "health.model_id", self.model_id, "not blank")
        object.__setattr__(self, "must_load", tuple(checks.items("health.must_load", self.must_load)))
        names = all(isinstance(name, str) and name.strip() for name in self.must_load)
        require(names, "health.must_load", self.must_load, "names of models")
        checks.pattern("health.ready_pattern", self.ready_pattern)
        checks.seconds("health.poll_min_s", self.poll_min_s, high=60)
        slowest_s = self.slowest_poll_s
        checks.seconds("health.poll_max_s", slowest_s, high=60)
        require(self.poll_min_s <= slowest_s, "health.poll_min_s", self.poll_min_s, f"<= {slowest_s}")
        checks.count("health.log_every", self.log_every, 1, 1_000_000)
        allow = self.allow_foreign_listener
        require(isinstance(allow, bool), "health.allow_foreign_listener", allow, "True or False")

    @property
    def slowest_poll_s(self) -> float:
        """`poll_max_s`, or what stands for its None."""
        if self.poll_max_s is not None:
            return self.poll_max_s
        return 0.045 if self.ready_pattern is None else 0.5


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
            checks.seconds(f"timeouts.{name}", getattr(self, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """How to end the child: the signal, `grace_s`, KILL to all that is left; then at most `drain_s` for the pipes.

    Attributes:
        signal: the request to end.
        to: who gets it: `group`, the child and everything that descends from it; or `leader`, the child alone, for a
            server that ends its own workers and takes their death by a signal for a crash. Then no wrapper that keeps
            signals to itself may stand before the server.
        grace_s, drain_s: see above.
    """

    signal: signal.Signals = signal.SIGTERM
    to: Literal["group", "leader"] = "group"
    grace_s: float = 10.0
    drain_s: float = 2.0

    def __post_init__(self) -> None:
        require(isinstance(self.signal, signal.Signals), "stop.signal", self.signal, "a member of signal.Signals")
        require(self.to in ("group", "leader"), "stop.to", self.to, "'group' or 'leader'")
        checks.seconds("stop.grace_s", self.grace_s, high=3600)
        checks.seconds("stop.drain_s", self.drain_s, high=60)


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
        require(self.policy in policies, "restart.policy", self.policy, "'never', 'on-failure' or 'on-resume'")
        checks.count("restart.max_restarts", self.max_restarts, 0, 1_000_000)
        checks.seconds("restart.backoff_s", self.backoff_s, high=3600)
        checks.seconds("restart.backoff_max_s", self.backoff_max_s)
        require(self.backoff_s <= self.backoff_max_s, "restart.backoff_s", self.backoff_s, f"<= {self.backoff_max_s}")
        require(checks.is_number(self.jitter) and 0 <= self.jitter <= 1, "restart.jitter", self.jitter, "from 0 to 1")
        checks.seconds("restart.reset_after_s", self.reset_after_s)
        checks.count("restart.crash_loop_after", self.crash_loop_after, 1, 1_000_000)
        if self.host_exit_code is not None:
            checks.count("restart.host_exit_code", self.host_exit_code, 1, 255)


@dataclass(frozen=True, slots=True, kw_only=True)
class Liveness:
    """The watchdog's eyes; it is off until it is armed.

    Attributes:
        armed: `ready`: as soon as READY; `resume`: only after the first resume (hosts that snapshot); `never`.
        period_s: between two health checks.
        misses: so many failed checks in a row mean that the child hangs.
        inference_every_s: run `Hooks.liveness` Steps this often, unless real traffic moved the counters meanwhile.
        step_s: one of these Steps, unless it has a `deadline_s` of its own; a small part of `timeouts.step_s`, because
            what they ask for is small.
        counters_path, counters_pattern: where the server counts its work, and a regular expression whose matches, taken
            together, change whenever it works (^ and $ match at every line); None: there are no counters, and the Steps
            always run.
    """

    armed: Literal["ready", "resume", "never"] = "ready"
    period_s: float = 10.0
    misses: int = 3
    inference_every_s: float = 60.0
    step_s: float = 15.0
    counters_path: str | None = None
    counters_pattern: str | None = None

    def __post_init__(self) -> None:
        require(
            self.armed in ("ready", "resume", "never"), "liveness.armed", self.armed, "'ready', 'resume' or 'never'"
        )
        checks.seconds("liveness.period_s", self.period_s)
        checks.count("liveness.misses", self.misses, 1, 1000)
        checks.seconds("liveness.inference_every_s", self.inference_every_s)
        checks.seconds("liveness.step_s", self.step_s)
        checks.pattern("liveness.counters_pattern", self.counters_pattern)
        if self.counters_path is not None:
            checks.url_path("liveness.counters_path", self.counters_path)
        both = (self.counters_path is None) == (self.counters_pattern is None)
        require(both, "liveness.counters_path", self.counters_path, "given together with counters_pattern")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLimits:
    """Bounds of the log pump, and how to read a line.

    Attributes:
        max_line_bytes: longer lines are cut, the rest is counted as dropped.
        tail_lines: kept for errors.
        tail_errors: the last so many lines of level error are kept as well, and stand before the last lines: what
            follows the error in a crash is often noise.
        backlog_bytes: read and not yet processed, per stream; beyond it the oldest output is dropped and counted.
        parse: reads the engine's level out of a line.
    """

    max_line_bytes: int = 8192
    tail_lines: int = 20
    tail_errors: int = 10
    backlog_bytes: int = 4 * 1024 * 1024
    parse: ParseLine = plain_line

    def __post_init__(self) -> None:
        checks.count("logs.max_line_bytes", self.max_line_bytes, 80, 1 << 20)
        checks.count("logs.tail_lines", self.tail_lines, 1, 10_000)
        checks.count("logs.tail_errors", self.tail_errors, 0, 10_000)
        checks.count("logs.backlog_bytes", self.backlog_bytes, 1 << 16, 1 << 30)
        require(callable(self.parse), "logs.parse", self.parse, "a function of a line")


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Everything about one supervised server.

    Attributes:
        name: for people and logs.
        command: argv; `{host}` and `{port}` are substituted in every argument and in every value of `env`;
            `{{port}}` gives the word `{port}`.
        env: variables of the child; `Secret` values are masked wherever they are printed.
        inherit_env: names (or shell patterns) of the host's variables that reach the child as well.
        cwd: working directory of the child; None: the host's.
        host, port: where it listens; port 0 chooses a free one, anew when the bind races.
        api_key: sent as `Authorization: Bearer` by probes and Steps.
        api_key_env: the variable by which the child learns the key; None: it learns it some other way.
        open_access: the server is meant to answer without a key; the auth Step refuses an open server otherwise.
        weights: files that the load reads, for progress and for the snapshot contract.
        vital: regular expressions for the command line (joined by blanks) or the name of the child's descendants
            without which it is not whole, such as an engine's workers. The end of one that was seen is the end of the
            child, at once, whatever code the child itself exits with later. A fork that has its parent's command line
            and name does not count. (): nothing is watched.
        dialect: how the engine speaks; hooks ask it.
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
    vital: tuple[str, ...] = ()
    health: Health = field(default_factory=Health)
    timeouts: Timeouts = field(default_factory=Timeouts)
    stop: Stop = field(default_factory=Stop)
    restart: Restart = field(default_factory=Restart)
    liveness: Liveness = field(default_factory=Liveness)
    logs: LogLimits = field(default_factory=LogLimits)
    dialect: Dialect = field(default_factory=Dialect)

    def __post_init__(self) -> None:
        require(isinstance(self.name, str) and bool(self.name.strip()), "name", self.name, "a non-blank name")
        texts = self._texts()
        require(any(self.command[:1]), "command", "an empty program", "at least a program")
        # No text's value is shown here, because a key may stand in it.
        for where, text in texts.items():
            require("\0" not in text, where, "(text with NUL)", "text without NUL")
        object.__setattr__(self, "inherit_env", checks.items("inherit_env", self.inherit_env))
        for pattern in self.inherit_env:
            require(isinstance(pattern, str), "inherit_env", pattern, "a tuple of strings")
        object.__setattr__(
            self, "weights", tuple(checks.as_path("weights", path) for path in checks.items("weights", self.weights))
        )
        object.__setattr__(self, "vital", checks.items("vital", self.vital))
        for expression in self.vital:
            require(isinstance(expression, str) and expression != "", "vital", expression, "a tuple of strings")
            checks.pattern("vital", expression)
        if self.cwd is not None:
            object.__setattr__(self, "cwd", checks.as_path("cwd", self.cwd))
        host = isinstance(self.host, str) and bool(re.fullmatch(r"[^\s/\0]+", self.host))
        require(host, "host", self.host, "a host name or IP")
        checks.count("port", self.port, 0, 65_535)
        if self.port == 0 and not any("{port}" in text.replace("{{port}}", "") for text in texts.values()):
            raise ProfileError(
                field="port", value=0, allowed="a port number, or '{port}' must stand in the command or env"
            )
        self._check_access()
        for part, kind in _PARTS.items():
            value = getattr(self, part)
            require(isinstance(value, kind), part, value, f"a {kind.__name__}")

    def _texts(self) -> dict[str, str]:
        """Every text of the command and the environment, by where it stands; secrets as empty texts."""
        arguments: list[str] = []
        for i, arg in enumerate(checks.items("command", self.command)):
            text = os.fspath(arg) if isinstance(arg, str | os.PathLike) else None
            if not isinstance(text, str):
                raise ProfileError(field=f"command[{i}]", value=checks.kind_of(arg), allowed="text or a path")
            arguments.append(text)
        object.__setattr__(self, "command", tuple(arguments))
        texts = {f"command[{i}]": text for i, text in enumerate(arguments)}
        require(isinstance(self.env, Mapping), "env", checks.kind_of(self.env), "a mapping of names to texts")
        for name, value in self.env.items():
            require(isinstance(name, str), "env", checks.kind_of(name), "a mapping of names to texts")
            head = re.split("[=\0]", name)[0]  # a key may stand behind the =
            require(_variable(name), "env", f"{head}...", "names without '=' and NUL")
            require(isinstance(value, str | Secret), f"env[{name}]", checks.kind_of(value), "text or a Secret")
            texts[f"env[{name}]"] = "" if isinstance(value, Secret) else value
        return texts

    def _check_access(self) -> None:
        require(self.api_key is None or isinstance(self.api_key, Secret), "api_key", MASK, "a Secret, or None")
        if self.api_key and not re.fullmatch(r"[!-~]+", self.api_key.reveal()):
            raise ProfileError(
                field="api_key", value=self.api_key, allowed="visible ASCII without spaces (it is a header)"
            )
        variable = self.api_key_env
        named = variable is None or (isinstance(variable, str) and _variable(variable))
        require(named, "api_key_env", variable, "a name without '=' and NUL, or None")
        require(isinstance(self.open_access, bool), "open_access", self.open_access, "True or False")
        require(not (self.open_access and self.api_key), "open_access", True, "False when an api_key is set")

    def __repr__(self) -> str:
        mask = Redactor(self.secrets)
        env = {name: MASK if is_secret_variable(name) else mask(str(value)) for name, value in self.env.items()}
        shown = {f.name: getattr(self, f.name) for f in fields(self)}
        shown |= {"command": mask.argv(self.command), "env": env}
        return f"Profile({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """Every secret that the profile knows, for redaction; also what names call one in the command and in `env`."""
        found = [value for value in self.env.values() if isinstance(value, Secret)]
        found += secrets_named({name: value for name, value in self.env.items() if isinstance(value, str)})
        key = (self.api_key,) if self.api_key else ()
        return tuple(dict.fromkeys((*found, *key, *secrets_in(self.command))))


def _variable(name: str) -> bool:
    return bool(name.strip()) and "=" not in name and "\0" not in name


_PARTS: Mapping[str, type] = {
    "health": Health,
    "timeouts": Timeouts,
    "stop": Stop,
    "restart": Restart,
    "liveness": Liveness,
    "logs": LogLimits,
    "dialect": Dialect,
}
