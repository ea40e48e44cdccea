"""A wrong setting is refused at construction, by name, with its value and what is allowed."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.errors import ProfileError
from supervisor.levels import LEVELS, plain_line
from supervisor.profile import (
    Health,
    Liveness,
    LogLimits,
    Profile,
    Restart,
    Stop,
    Timeouts,
    accept_2xx,
)
from supervisor.redact import MASK, Secret

PARTS: dict[str, Callable[..., Any]] = {
    "health": Health,
    "timeouts": Timeouts,
    "stop": Stop,
    "restart": Restart,
    "liveness": Liveness,
    "logs": LogLimits,
}
DAY = "seconds, more than 0 and at most 86400"
HOUR = "seconds, more than 0 and at most 3600"
MINUTE = "seconds, more than 0 and at most 60"
MILLION = "a whole number from 1 to 1000000"

# (field with its part, value, allowed)
WRONG: list[tuple[str, Any, str]] = [
    ("health.path", "health", "a path that begins with /"),
    ("health.path", "", "a path that begins with /"),
    ("health.path", None, "a path that begins with /"),
    ("health.path", "/a b", "a path that begins with /, without blanks"),
    ("health.path", "/a\n", "a path that begins with /, without blanks"),
    ("health.accept", None, "a function of status and body"),
    ("health.path", 7, "a path that begins with /"),
    ("health.model_id", " \t", "not blank"),
    ("health.model_id", 7, "not blank"),
    ("health.ready_pattern", "(", "a regular expression ("),
    ("health.ready_pattern", 5, "a regular expression ("),
    ("health.poll_min_s", 0, MINUTE),
    ("health.poll_min_s", -1.0, MINUTE),
    ("health.poll_min_s", 1.0, "<= 0.045"),
    ("health.poll_max_s", 60.1, MINUTE),
    ("health.poll_max_s", 0, MINUTE),
    ("health.log_every", 0, MILLION),
    ("health.log_every", 1.5, MILLION),
    ("health.allow_foreign_listener", "yes", "True or False"),
    *((f"timeouts.{name}", 0, DAY) for name in ("start_s", "stall_s", "probe_s", "step_s", "resume_s")),
    ("timeouts.start_s", math.inf, DAY),
    ("timeouts.start_s", math.nan, DAY),
    ("timeouts.start_s", "10", DAY),
    ("timeouts.start_s", 86_400.1, DAY),
    ("stop.to", "all", "'group' or 'leader'"),
    ("stop.grace_s", 0, HOUR),
    ("stop.grace_s", 3601, HOUR),
    ("stop.drain_s", 0, MINUTE),
    ("stop.drain_s", 61, MINUTE),
    ("restart.policy", "always", "'never', 'on-failure' or 'on-resume'"),
    ("restart.max_restarts", -1, "a whole number from 0 to 1000000"),
    ("restart.backoff_s", 0, HOUR),
    ("restart.backoff_max_s", 0, DAY),
    ("restart.backoff_s", 61, "<= 60.0"),
    ("restart.jitter", -0.1, "from 0 to 1"),
    ("restart.jitter", 1.1, "from 0 to 1"),
    ("restart.jitter", math.nan, "from 0 to 1"),
    ("restart.reset_after_s", 0, DAY),
    ("restart.crash_loop_after", 0, MILLION),
    ("restart.host_exit_code", 0, "a whole number from 1 to 255"),
    ("restart.host_exit_code", 256, "a whole number from 1 to 255"),
    ("liveness.armed", "always", "'ready', 'resume' or 'never'"),
    ("liveness.period_s", 0, DAY),
    ("liveness.misses", 0, "a whole number from 1 to 1000"),
    ("liveness.inference_every_s", 0, DAY),
    ("liveness.step_s", 0, DAY),
    ("liveness.counters_pattern", "[", "a regular expression ("),
    ("liveness.counters_pattern", 5, "a regular expression ("),
    ("liveness.counters_path", "metrics", "a path that begins with /"),
    ("liveness.counters_path", 5, "a path that begins with /"),
    ("logs.parse", None, "a function of a line"),
    ("liveness.counters_path", "/metrics", "given together with counters_pattern"),
    ("logs.max_line_bytes", 79, "a whole number from 80 to 1048576"),
    ("logs.tail_lines", 0, "a whole number from 1 to 10000"),
    ("logs.tail_errors", -1, "a whole number from 0 to 10000"),
    ("logs.backlog_bytes", 65_535, "a whole number from 65536 to 1073741824"),
]


def a_profile(**fields: Any) -> Profile:
    return Profile(**({"name": "server", "command": ("server", "--port", "{port}")} | fields))


@pytest.mark.parametrize(("where", "value", "allowed"), WRONG, ids=lambda value: str(value)[:24])
def test_a_wrong_setting_is_named_with_its_value_and_the_allowed_range(where: str, value: object, allowed: str) -> None:
    """Every validated field of every part refuses a wrong value, in words that suffice to correct it."""
    part, _, name = where.partition(".")
    with pytest.raises(ProfileError) as caught:
        PARTS[part](**{name: value})
    assert caught.value.field == where
    assert str(caught.value).startswith(f"{where}={value!r} is not valid: it must be {allowed}")


@pytest.mark.parametrize(
    ("fields", "where", "value", "allowed"),
    [
        ({"name": " "}, "name", " ", "a non-blank name"),
        ({"command": "server --port 1"}, "command", "one string", "a tuple of strings"),
        ({"name": None}, "name", None, "a non-blank name"),
        ({"command": None}, "command", "(NoneType)", "a tuple of strings"),
        ({"command": (1,)}, "command[0]", "(int)", "text or a path"),
        ({"command": (b"server",)}, "command[0]", "(bytes)", "text or a path"),
        ({"command": ()}, "command", "an empty program", "at least a program"),
        ({"command": ("", "k"), "port": 1}, "command", "an empty program", "at least a program"),
        ({"command": ("a", "b\0c"), "port": 1}, "command[1]", "(text with NUL)", "text without NUL"),
        ({"env": None}, "env", "(NoneType)", "a mapping of names to texts"),
        ({"env": {1: "x"}}, "env", "(int)", "a mapping of names to texts"),
        ({"env": {"A": 1}}, "env[A]", "(int)", "text or a Secret"),
        ({"env": {"A=key": "x"}}, "env", "A...", "names without '=' and NUL"),
        ({"env": {"": "x"}}, "env", "...", "names without '=' and NUL"),
        ({"env": {"A\0": "x"}}, "env", "A...", "names without '=' and NUL"),
        ({"env": {"A": "x\0"}}, "env[A]", "(text with NUL)", "text without NUL"),
        ({"inherit_env": "*"}, "inherit_env", "one string", "a tuple of strings"),
        ({"inherit_env": (1,)}, "inherit_env", 1, "a tuple of strings"),
        ({"cwd": 5}, "cwd", 5, "a path"),
        ({"cwd": "a\0b"}, "cwd", "a\0b", "a path without NUL"),
        ({"weights": (5,)}, "weights", 5, "a path"),
        ({"weights": "model.gguf"}, "weights", "one string", "a tuple of strings"),
        ({"vital": "worker"}, "vital", "one string", "a tuple of strings"),
        ({"vital": ("",)}, "vital", "", "a tuple of strings"),
        ({"vital": (5,)}, "vital", 5, "a tuple of strings"),
        (
            {"vital": ("(",)},
            "vital",
            "(",
            "a regular expression (missing ), unterminated subpattern at position 0)",
        ),
        ({"api_key": "plain"}, "api_key", MASK, "a Secret, or None"),
        ({"api_key_env": "A=B"}, "api_key_env", "A=B", "a name without '=' and NUL, or None"),
        ({"api_key_env": ""}, "api_key_env", "", "a name without '=' and NUL, or None"),
        ({"open_access": "no"}, "open_access", "no", "True or False"),
        ({"host": None}, "host", None, "a host name or IP"),
        ({"timeouts": None}, "timeouts", None, "a Timeouts"),
        ({"health": Stop()}, "health", Stop(), "a Health"),
        ({"stop": 1}, "stop", 1, "a Stop"),
        ({"restart": "never"}, "restart", "never", "a Restart"),
        ({"liveness": None}, "liveness", None, "a Liveness"),
        ({"logs": None}, "logs", None, "a LogLimits"),
        ({"host": ""}, "host", "", "a host name or IP"),
        ({"host": "http://a"}, "host", "http://a", "a host name or IP"),
        ({"host": "a b"}, "host", "a b", "a host name or IP"),
        ({"port": -1}, "port", -1, "a whole number from 0 to 65535"),
        ({"port": 65_536}, "port", 65_536, "a whole number from 0 to 65535"),
        ({"port": "80"}, "port", "80", "a whole number from 0 to 65535"),
        ({"command": ("server",)}, "port", 0, "a port number, or '{port}' must stand in the command or env"),
        ({"open_access": True, "api_key": Secret("k")}, "open_access", True, "False when an api_key is set"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_wrong_profile_is_refused(fields: dict[str, Any], where: str, value: object, allowed: str) -> None:
    """What concerns the whole server is judged by the profile itself, in the same words."""
    with pytest.raises(ProfileError) as caught:
        a_profile(**fields)
    assert str(caught.value) == f"{where}={value!r} is not valid: it must be {allowed}."
    assert caught.value.field == where


def test_every_numeric_field_stands_in_the_table() -> None:
    """A field that is added later without a wrong value here is noticed."""
    tested = {where for where, _, _ in WRONG}
    for name, part in PARTS.items():
        for field in dataclasses.fields(part()):
            if isinstance(getattr(part(), field.name), int | float) and field.name != "signal":
                assert f"{name}.{field.name}" in tested


def test_the_defaults_are_valid() -> None:
    """A name and a command make a profile; nothing else must be chosen."""
    profile = a_profile()
    assert [getattr(profile, name) for name in PARTS] == [part() for part in PARTS.values()]
    assert (profile.host, profile.port, profile.api_key, profile.secrets) == ("127.0.0.1", 0, None, ())


@pytest.mark.parametrize("thing", [a_profile(), *(part() for part in PARTS.values())], ids=lambda t: type(t).__name__)
def test_settings_are_frozen(thing: Any) -> None:
    """Nobody changes a profile under a running supervision; `dataclasses.replace` makes another one."""
    field = dataclasses.fields(thing)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(thing, field, "x")
    assert dataclasses.replace(thing) == thing


def test_a_replacement_is_validated_as_well() -> None:
    """There is no way around the checks."""
    with pytest.raises(ProfileError, match=r"timeouts\.start_s=-1 "):
        dataclasses.replace(Timeouts(), start_s=-1)


def test_the_bounds_themselves_are_allowed() -> None:
    """The ranges in the messages include the ends that they say they include."""
    Timeouts(start_s=86_400)
    Stop(signal=signal.SIGINT, grace_s=3600, drain_s=60)
    Restart(policy="on-failure", max_restarts=0, jitter=0, crash_loop_after=1, host_exit_code=255)
    Liveness(counters_path="/metrics", counters_pattern=r"\d+")
    LogLimits(max_line_bytes=80, tail_lines=1, backlog_bytes=1 << 16)
    a_profile(port=65_535)


@pytest.mark.parametrize(
    "fields",
    [
        {"command": ("server", "--listen={host}:{port}")},
        {"command": ("server",), "env": {"PORT": "{port}"}},
        {"command": ("server",), "port": 8080},
    ],
)
def test_a_chosen_port_must_be_able_to_reach_the_child(fields: dict[str, Any]) -> None:
    """Port 0 needs a `{port}` in an argument or a variable; a fixed port needs none."""
    assert a_profile(**fields).name == "server"


def test_a_secret_is_no_place_for_the_port() -> None:
    """A secret is handed on as it is, so a `{port}` in it does not count."""
    with pytest.raises(ProfileError, match="port=0"):
        a_profile(command=("server",), env={"KEY": Secret("{port}")})


def test_a_command_may_hold_paths() -> None:
    """Paths become text once, here."""
    assert a_profile(command=(Path("/bin/server"), "{port}")).command == ("/bin/server", "{port}")


def test_paths_may_be_given_as_text() -> None:
    """Where a path is wanted, text is one."""
    profile: Profile = a_profile(weights=["a", Path("b")], cwd="/")
    assert (profile.weights, profile.cwd) == ((Path("a"), Path("b")), Path("/"))


def test_no_text_of_the_command_is_shown_by_an_error() -> None:
    """A key may stand anywhere in the command or the environment, so an error names the place and not the text."""
    for fields in (
        {"command": ("server", "--api-key=sk-0123456789\0")},
        {"command": ("", "--api-key", "sk-0123456789")},
        {"command": "server --api-key sk-0123456789"},
        {"env": {"API_KEY": "sk-0123456789\0"}},
        {"env": {"API_KEY=sk-0123456789": ""}},
        {"api_key": "sk-0123456789"},
    ):
        with pytest.raises(ProfileError) as caught:
            a_profile(**fields)
        assert "sk-0" not in str(caught.value) + repr(caught.value) + repr(caught.value.value)


def test_a_key_in_the_command_is_a_secret() -> None:
    """A key that stands literally in the command is masked in the profile's text, and known to its redaction."""
    profile = a_profile(
        command=("server", "--api-key", "sk-0123456789", "-H", "Authorization: Bearer sk-abcdefgh", "--port", "{port}"),
        env={"HF_TOKEN": "hf_1", "OTHER": "sk-0123456789"},
        api_key=Secret("sk-0123456789"),
    )
    assert profile.secrets == (Secret("sk-0123456789"), Secret("sk-abcdefgh"))
    text = repr(profile)
    assert "sk-" not in text and "hf_1" not in text
    assert text.startswith("Profile(name='server', command=('server', '--api-key', '***', '-H', ")
    assert all(f" {field.name}=" in text for field in dataclasses.fields(profile)[1:])


def test_secrets_of_a_profile_do_not_print() -> None:
    """`secrets` finds all of them, and no text of the profile shows one."""
    profile = a_profile(env={"A": Secret("first-secret"), "B": "plain"}, api_key=Secret("second-secret"))
    assert [secret.reveal() for secret in profile.secrets] == ["first-secret", "second-secret"]
    for text in (repr(profile), str(profile), f"{profile}"):
        assert "first-secret" not in text and "second-secret" not in text
        assert "plain" in text


@pytest.mark.parametrize(
    ("line", "level", "text"),
    [
        ("plain words", "info", "plain words"),
        ("ERROR: not ours to guess", "info", "ERROR: not ours to guess"),
        ('{"level": "WARN", "msg": "low"}', "warning", "low"),
        ('{"severity": "critical", "message": "bad"}', "error", "bad"),
        ('{"lvl": "trace", "event": "x"}', "debug", "x"),
        ('{"level": "notice", "msg": "odd"}', "info", "odd"),
        ('{"level": 30, "msg": "a number"}', "info", "a number"),
        ('{"level": "error", "code": 7}', "error", '{"level": "error", "code": 7}'),
        ('{"msg": {"a": 1}}', "info", "{'a': 1}"),
        ('{"msg": "cut', "info", '{"msg": "cut'),
        ("{not json}", "info", "{not json}"),
        ('["level", "error"]', "info", '["level", "error"]'),
    ],
)
def test_plain_line(line: str, level: str, text: str) -> None:
    """JSON objects give their level and message; everything else is shown as it is."""
    assert plain_line(line) == (level, text)


@given(st.one_of(st.text(), st.recursive(st.none() | st.text() | st.floats(), st.lists).map(json.dumps)))
def test_plain_line_reads_anything(text: str) -> None:
    """No line makes the default parser raise."""
    for line in (text, "{" + text, f'{{"level": {text}}}', '{"msg":' + "[" * 5000):
        level, _ = plain_line(line)
        assert level in {"debug", "info", "warning", "error"}


def test_level_names_are_lower_case() -> None:
    """The parser folds case before it looks a name up."""
    assert all(name == name.lower() for name in LEVELS)


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, "", None),
        (200, "anything", None),
        (204, "", None),
        (299, "", None),
        (199, "", "HTTP 199: empty body"),
        (300, "", "HTTP 300: empty body"),
        (503, '{"error":\n  "loading"}', 'HTTP 503: {"error": "loading"}'),
        (500, "x" * 1000, "HTTP 500: " + "x" * 200),
    ],
)
def test_accept_2xx(status: int, body: str, verdict: str | None) -> None:
    """200 to 299 is up whatever the body says; anything else is quoted on one short line."""
    assert accept_2xx(status, body) == verdict


def test_the_poll_is_slow_where_a_log_line_wakes_it() -> None:
    """Without a number, probes slow down to 22 a second, to 2 with a ready pattern; a minimum must fit what follows."""
    assert Health().slowest_poll_s == 0.045
    assert Health(ready_pattern="listening", poll_min_s=0.5).slowest_poll_s == 0.5
    assert Health(ready_pattern="listening", poll_max_s=0.02).slowest_poll_s == 0.02
    with pytest.raises(ProfileError, match=r"poll_min_s=0\.6 is not valid: it must be <= 0\.5"):
        Health(ready_pattern="listening", poll_min_s=0.6)
