"""The parts of the command line: what options change, and what systemd is told."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import click
import pytest

from hooks.auth import AuthCheck
from hooks.warmup import Ping, RawJson, Repeat, Text, Thinking
from supervisor import events
from supervisor.cli.command import of_command
from supervisor.cli.notify import Notifier
from supervisor.cli.options import override, shared_options
from supervisor.engines.sglang.server import STOP
from supervisor.errors import ProfileError
from supervisor.events import Event
from supervisor.profile import Liveness, Profile, Restart, Stop
from supervisor.redact import Secret
from supervisor.steps import Hooks
from support import until_async

# --------------------------------------------------------------------------------------------- options

PLAIN = Profile(name="plain", command=("server", "{port}"), env={"A": "1"})


def given(*args: str) -> dict[str, Any]:
    """What click makes of these options."""

    @click.command()
    @shared_options
    def command(**options: Any) -> dict[str, Any]:
        return options

    found: dict[str, Any] = command.main(args=list(args), standalone_mode=False)
    return found


def overridden(*args: str, profile: Profile = PLAIN, hooks: Hooks | None = None) -> tuple[Profile, Hooks]:
    return override(profile, hooks or Hooks(), given(*args))


def test_no_options_change_nothing() -> None:
    """What is not given is the profile's own."""
    profile = Profile(
        name="own",
        command=("server",),
        port=9,
        api_key=Secret("k"),
        weights=(Path("w"),),
        restart=Restart(policy="on-failure", max_restarts=9),
        liveness=Liveness(armed="resume"),
    )
    hooks = Hooks(warmup=(Text(),))
    assert overridden(profile=profile, hooks=hooks) == (profile, hooks)


@pytest.mark.parametrize(
    ("args", "where", "value"),
    [
        (["--name", "n"], "name", "n"),
        (["--host", "::1"], "host", "::1"),
        (["--port", "81"], "port", 81),
        (["--cwd", "/"], "cwd", Path("/")),
        (["--health", "/up"], "health.path", "/up"),
        (["--model-id", "m"], "health.model_id", "m"),
        (["--ready-pattern", "up$"], "health.ready_pattern", "up$"),
        (["--start-timeout-s", "7"], "timeouts.start_s", 7),
        (["--stall-s", "7"], "timeouts.stall_s", 7),
        (["--step-timeout-s", "7"], "timeouts.step_s", 7),
        (["--grace-s", "0.5"], "stop.grace_s", 0.5),
        (["--drain-s", "0.5"], "stop.drain_s", 0.5),
        (["--restart", "on-failure"], "restart.policy", "on-failure"),
        (["--max-restarts", "0"], "restart.max_restarts", 0),
        (["--liveness-s", "3"], "liveness.period_s", 3),
        (["--liveness-s", "0"], "liveness.armed", "never"),
        (["--open"], "open_access", True),
        (["--weights", "a", "--weights", "b"], "weights", (Path("a"), Path("b"))),
        (["--env", "B=2", "--env", "C="], "env", {"A": "1", "B": "2", "C": ""}),
        (["--env", "A=x=y"], "env", {"A": "x=y"}),
    ],
    ids=lambda value: str(value)[:30],
)
def test_every_option_lands_in_its_field(args: list[str], where: str, value: object) -> None:
    """An option changes one field, and only that one."""
    profile, hooks = overridden(*args)
    found: Any = profile
    for name in where.split("."):
        found = getattr(found, name)
    assert found == value
    assert hooks == Hooks()


def test_a_wrong_option_is_refused_like_a_wrong_setting() -> None:
    """The command line has no checks of its own to keep in step."""
    with pytest.raises(ProfileError, match=r"stop\.grace_s=0\.0 is not valid"):
        overridden("--grace-s", "0")


def test_the_key_comes_from_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key is named on the command line, never written there."""
    monkeypatch.setenv("HOUSE_KEY", "sk-1234")
    profile, _ = overridden("--api-key-env", "HOUSE_KEY")
    assert profile.api_key == Secret("sk-1234")
    assert profile.api_key_env == "HOUSE_KEY"


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_missing_key_is_refused(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    """A variable that is unset or blank would open the server."""
    monkeypatch.delenv("HOUSE_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("HOUSE_KEY", value)
    with pytest.raises(ProfileError, match=r"--api-key-env='HOUSE_KEY' .* set, not blank"):
        overridden("--api-key-env", "HOUSE_KEY")


def test_a_key_closes_an_open_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is given overrules the profile's `open_access`; asking for both is a contradiction."""
    monkeypatch.setenv("HOUSE_KEY", "sk-1234")
    open_ = Profile(name="open", command=("s",), port=1, open_access=True)
    assert not overridden("--api-key-env", "HOUSE_KEY", profile=open_)[0].open_access
    with pytest.raises(ProfileError, match="open_access"):
        overridden("--api-key-env", "HOUSE_KEY", "--open")


def test_warmups_come_after_the_profiles_own_and_bring_a_liveness_check() -> None:
    """Named warmups come once each; a server of models is then also asked whether it still computes."""
    _, hooks = overridden("--warmup", "text", "--warmup", "thinking", hooks=Hooks(warmup=(Text(),)))
    assert hooks.warmup == (Text(), Thinking())
    assert hooks.liveness == (Ping(),)


def test_a_warmup_takes_no_step_of_the_profile_away() -> None:
    """An engine's own Steps, such as one that closes its open routes, stay in front of the named ones."""
    own = Hooks(warmup=(AuthCheck(),))
    assert overridden("--warmup", "text", hooks=own)[1].warmup == (AuthCheck(), Text())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), STOP),
        (("--grace-s", "10"), replace(STOP, grace_s=10)),
        (("--drain-s", "3"), replace(STOP, drain_s=3)),
    ],
)
def test_a_limit_of_the_stop_leaves_the_rest_to_the_engine(options: tuple[str, ...], expected: Stop) -> None:
    """`--grace-s` changes for how long, and not whom the engine wants to be signalled."""
    command = ("python", "-m", "sglang.launch_server", "--port", "{port}")
    profile, _, _ = of_command(command, given(*options) | {"engine": None})
    assert profile.stop == expected


def test_a_server_that_was_warmed_from_a_file_is_not_asked_to_chat(tmp_path: Path) -> None:
    """A server of completions alone would refuse a chat, and a watchdog that insists would kill it."""
    file = tmp_path / "request.json"
    file.write_text('{"path": "/v1/completions", "body": {"prompt": "The sea is"}}')
    _, hooks = overridden("--warmup", str(file))
    assert hooks.liveness == (Repeat(request=RawJson(path=str(file))),)


def test_the_auth_check_comes_once_and_last() -> None:
    """It is added after the warmups, unless the profile has one already."""
    _, hooks = overridden("--warmup", "text", "--auth-check")
    assert [step.name for step in hooks.warmup] == [Text().name, AuthCheck().name]
    own = Hooks(warmup=(AuthCheck(),))
    assert overridden("--auth-check", hooks=own)[1] == own


def test_a_foreign_listener_is_allowed_by_an_option() -> None:
    """`--allow-foreign-listener` reaches the profile; without it a profile's own setting stays."""
    allowed = overridden("--allow-foreign-listener")[0]
    assert allowed.health.allow_foreign_listener and not PLAIN.health.allow_foreign_listener
    assert overridden(profile=allowed)[0] == allowed


# ---------------------------------------------------------------------------------------------- notify

LIFE: list[tuple[Event, str | None]] = [
    (events.Starting(elapsed_s=0, unix_s=0, attempt=1), None),
    (events.ChildSpawned(elapsed_s=0, unix_s=0, pid=7, argv=("s",)), "STATUS=loading, pid 7"),
    (
        events.LoadProgress(elapsed_s=0, unix_s=0, bytes=25, total_bytes=100, bytes_per_s=1.0, eta_s=None),
        "STATUS=loading, 25%",
    ),
    (events.LoadProgress(elapsed_s=0, unix_s=0, bytes=25, total_bytes=None, bytes_per_s=1.0, eta_s=None), None),
    (events.ChildUp(elapsed_s=0, unix_s=0, waited_s=1.0, probes=1), None),
    (
        events.ChildReady(elapsed_s=0, unix_s=0, waited_s=1.0, url="http://h:1", pid=7),
        "READY=1\nSTATUS=serving at http://h:1",
    ),
    (events.Stopping(elapsed_s=0, unix_s=0, asked=False, reason="ChildCrashed"), None),
    (events.ChildRestarting(elapsed_s=0, unix_s=0, attempt=1, delay_s=1.0), "STATUS=restarting, attempt 1"),
    (events.Stopping(elapsed_s=0, unix_s=0, asked=True, reason="asked"), "STOPPING=1\nSTATUS=stopping"),
]


@pytest.fixture(params=["path", "path with @", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """systemd's side: a datagram socket whose address is in NOTIFY_SOCKET."""
    if request.param == "abstract":
        if sys.platform != "linux":
            pytest.skip("abstract addresses are Linux's")
        address, shown = f"\0warmboot-{os.getpid()}", f"@warmboot-{os.getpid()}"
    else:
        directory = tmp_path / ("user@1000" if "@" in request.param else "run")
        directory.mkdir()
        address = shown = str(directory / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", shown)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(address)
        server.setblocking(False)
        yield server


@pytest.fixture
def notifier() -> Iterator[Notifier]:
    one = Notifier()
    yield one
    one.close()


def received(server: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(server.recv(4096).decode())
        except BlockingIOError:
            return found


def test_systemd_hears_of_a_life(systemd: socket.socket, notifier: Notifier) -> None:
    """READY at READY, STATUS on the way, STOPPING only when it was asked for: a datagram each, in order."""
    for event, _ in LIFE:
        notifier(event)
    assert received(systemd) == [message for _, message in LIFE if message]


def test_a_socket_that_is_gone_is_not_our_failure(systemd: socket.socket, notifier: Notifier) -> None:
    """systemd may be restarted under us; a message more or less ends no server."""
    systemd.close()
    for event, _ in LIFE:
        notifier(event)


def test_a_full_socket_does_not_block(systemd: socket.socket, notifier: Notifier) -> None:
    """Nobody reads: the messages beyond the buffer are lost, and the observer returns."""
    for _ in range(2000):
        notifier.send("STATUS=" + "x" * 1000)
    assert 0 < len(received(systemd)) < 2000


def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """No NOTIFY_SOCKET, no socket."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notifier = Notifier()
    for event, _ in LIFE:
        notifier(event)
    assert notifier._socket is None
    notifier.close()


@pytest.mark.anyio
async def test_the_watchdog_is_fed(monkeypatch: pytest.MonkeyPatch, systemd: socket.socket, notifier: Notifier) -> None:
    """WATCHDOG=1 goes out at once and again, until the supervision ends."""
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    pings: list[str] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(notifier.ping)
        with anyio.fail_after(5):
            while len(pings) < 2:
                await anyio.wait_readable(systemd)
                pings += received(systemd)
        tasks.cancel_scope.cancel()
    assert set(pings) == {"WATCHDOG=1"}


@pytest.mark.anyio
@pytest.mark.parametrize(("usec", "pid"), [("", ""), ("x", ""), ("0", ""), ("20000", "1")])
async def test_no_watchdog_is_fed_that_is_not_ours(
    monkeypatch: pytest.MonkeyPatch, systemd: socket.socket, notifier: Notifier, usec: str, pid: str
) -> None:
    """Not asked for, off, or meant for another process: `ping` returns and sends nothing."""
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", pid or str(os.getpid()))
    with anyio.fail_after(5):
        await notifier.ping()
    assert received(systemd) == []


@pytest.mark.anyio
async def test_systemd_gives_a_start_more_time(
    systemd: socket.socket, notifier: Notifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start asks for more time at once and again, whatever it does, until the first READY; never later."""
    monkeypatch.setattr("supervisor.cli.notify._EXTEND_EVERY_S", 0.01)
    heard: list[str] = []

    def heard_more() -> bool:
        heard.extend(received(systemd))
        return len(heard) >= 3

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(notifier.extend_start)
        await until_async(heard_more)
        assert set(heard) == {"EXTEND_TIMEOUT_USEC=30000000"}
        notifier(events.ChildReady(waited_s=1.0, url="http://h:1", pid=7))
    received(systemd)
    notifier(events.Starting(attempt=2))
    await notifier.extend_start()
    assert received(systemd) == []
