"""From a profile to a running process: port, arguments, environment."""

from __future__ import annotations

import fnmatch
import os
import socket
from typing import Final

from supervisor import procfs
from supervisor.contract import Child
from supervisor.errors import PortTaken, SpawnError
from supervisor.process import Process

# systemd's protocol is between it and us: a child that inherits these would speak in our name.
_NEVER_INHERITED: Final = frozenset({"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"})


def launch(child: Child) -> tuple[Process, tuple[str, ...]]:
    """Starts the profile's command for the child's port; returns the process and its argv, not redacted.

    Raises:
        PortTaken: somebody accepts connections there already.
        SpawnError: the command could not be started; its argv is redacted.
    """
    profile = child.profile
    if procfs.accepts(child.host, child.port):
        owner = next(iter(procfs.owners(child.port, session=-1)), None)
        raise PortTaken(
            host=profile.host,
            port=child.port,
            pid=owner.pid if owner else None,
            command=child.redact(owner.command) if owner else None,
            waited_s=0.0,
        )
    argv = tuple(_fill(arg, child) for arg in profile.command)
    try:
        return Process.start(argv, env=_environment(child), cwd=profile.cwd), argv
    except SpawnError as error:
        error.argv = child.redact.argv(error.argv)
        raise


def free_port(host: str) -> int:
    """A TCP port that was free a moment ago; whoever binds it next may still lose the race."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def _fill(text: str, child: Child) -> str:
    # Not str.format: arguments hold JSON with braces of its own.
    return text.replace("{host}", child.profile.host).replace("{port}", str(child.port))


def _environment(child: Child) -> dict[str, str]:
    profile = child.profile
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in _NEVER_INHERITED and any(fnmatch.fnmatchcase(name, pattern) for pattern in profile.inherit_env)
    }
    own = {
        name: _fill(value, child) if isinstance(value, str) else value.reveal() for name, value in profile.env.items()
    }
    key = {profile.api_key_env: profile.api_key.reveal()} if profile.api_key and profile.api_key_env else {}
    return inherited | own | key
