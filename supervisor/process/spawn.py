"""From a profile to a running process: port, arguments, environment."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import secrets
import socket
from dataclasses import dataclass
from functools import partial
from typing import Final

import anyio

from supervisor.child import Child
from supervisor.errors import PortTaken, ProfileError, SpawnError
from supervisor.linux import listeners, processes
from supervisor.linux.exhaustion import detect, look
from supervisor.process.process import Process

# systemd's protocol is between it and us: a child that inherits these would speak in our name.
_NEVER_INHERITED: Final = frozenset({"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """A started child: its argv is not redacted; by the cookie its descendants are known wherever they went."""

    process: Process
    argv: tuple[str, ...]
    cookie: str


async def launch(child: Child) -> Launched:
    """Starts the profile's command for the child's port. Cancellation comes before the start or not at all.

    Raises:
        PortTaken: somebody accepts connections there already.
        SpawnError: the command could not be started; its argv is redacted.
    """
    profile = child.profile
    if await accepts(child.host, child.port):
        owners = await look(partial(listeners.owners, child.port, session=-1, host=child.host))
        owner = next(iter(owners or ()), None)
        raise PortTaken(
            host=profile.host,
            port=child.port,
            pid=owner.pid if owner else None,
            command=owner.command(child.redact) if owner else None,
            waited_s=0.0,
        )
    argv = child.argv
    cookie = secrets.token_hex(8)
    try:
        process = Process.start(argv, env=_environment(child, cookie), cwd=profile.cwd)
    except SpawnError as error:
        error.argv = child.redact.argv(error.argv)
        raise
    return Launched(process=process, argv=argv, cookie=cookie)


def free_port(host: str) -> int:
    """A TCP port that was free a moment ago; whoever binds it next may still lose the race.

    Raises:
        ProfileError: the host is no address of this machine.
        OutOfResources: there is no descriptor for the look.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        probe = socket.socket(family)
    except OSError as error:
        if exhausted := detect(error):
            raise exhausted from error
        raise
    with probe:
        try:
            probe.bind((host, 0))
        except (OSError, UnicodeError) as error:
            allowed = f"an address of this machine or a name of one, without brackets ({error})"
            raise ProfileError(field="host", value=host, allowed=allowed) from error
        return int(probe.getsockname()[1])


async def accepts(host: str, port: int, *, timeout_s: float = 0.5) -> bool:
    """Whether anybody accepts connections there now; loopback answers in microseconds."""
    with anyio.move_on_after(timeout_s), contextlib.suppress(OSError, UnicodeError):  # a name that IDNA cannot encode
        async with await anyio.connect_tcp(host, port):
            return True
    return False


def _environment(child: Child, cookie: str) -> dict[str, str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in _NEVER_INHERITED
        and any(fnmatch.fnmatchcase(name, pattern) for pattern in child.profile.inherit_env)
    }
    # First in order, because environments are searched up to a bound only; last in rank.
    mark = {processes.COOKIE: cookie}
    return mark | inherited | child.env | mark
