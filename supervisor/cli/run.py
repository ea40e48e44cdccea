"""`supervise run PROFILE`."""

from __future__ import annotations

from typing import Any

import click

from supervisor.cli import session
from supervisor.cli.exits import exits_with_status
from supervisor.cli.options import override, seal_options, sealed_way, shared_options
from supervisor.loading import load

__all__ = ["run"]


@click.command("run", short_help="Start and watch the server of a profile, or `local`: Gemma 3 270M.")
@click.argument("profile_name", metavar="PROFILE")
@seal_options
@shared_options
@exits_with_status
def run(profile_name: str, **given: Any) -> int:
    """Start and watch the server that PROFILE describes, until Ctrl-C or SIGTERM.

    PROFILE is module:attribute, path/file.py:attribute, or a registered name such as `local` (Gemma 3 270M on the CPU,
    which needs no download and no GPU). Options change what the profile says.

    `supervise sleep` and `supervise wake` put it to sleep on this host and wake it; with --gpu-memory offload another
    server can use its GPU memory meanwhile.

    For a platform that snapshots: SIGUSR1 seals the server (the profile's before_seal and sleep Steps, --golden,
    --contract; then the event child.sealed), and SIGUSR2 resumes it after the restore.
    """
    profile, hooks = override(*load(profile_name), given)
    profile, hooks, notices = sealed_way(profile, hooks, given)
    return session.run(profile, hooks, log_format=given["log_format"], key_variable=given["api_key_env"], first=notices)
