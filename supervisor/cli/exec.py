"""`supervise exec COMMAND...`."""

from __future__ import annotations

from typing import Any

import click

from supervisor.cli import session
from supervisor.cli.command import of_command
from supervisor.cli.exits import exits_with_status
from supervisor.cli.options import seal_options, sealed_way, shared_options

__all__ = ["exec_"]


@click.command(
    "exec",
    short_help="Start and watch any HTTP server.",
    options_metavar="[OPTIONS]",
    context_settings={"allow_interspersed_args": False},  # options that follow COMMAND are its own, also without --
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--engine", metavar="NAME", help="Whose server it is; plain: none's.  [as COMMAND tells]")
@seal_options
@shared_options
@exits_with_status
def exec_(command: tuple[str, ...], **given: Any) -> int:
    """Start and watch any HTTP server, until Ctrl-C or SIGTERM.

    COMMAND is a program with its arguments; everything after the program's name belongs to it. In arguments and in
    --env, {port} and {host} stand for where the server must listen. For example:

    \b
      supervise exec --health / python3 -m http.server {port}

    Which engine's server it is shows in the log (engine.chosen) and decides how its health, log lines and counters are
    read.

    `supervise sleep` and `supervise wake` put it to sleep on this host and wake it; with --gpu-memory offload another
    server can use its GPU memory meanwhile.

    For a platform that snapshots: SIGUSR1 seals the server (--golden, --contract; then the event child.sealed), and
    SIGUSR2 resumes it after the restore. A seal that is refused leaves it serving. `supervise rehearse -- COMMAND`
    tries both in a sandbox.
    """
    profile, hooks, chosen = of_command(command, given)
    profile, hooks, notices = sealed_way(profile, hooks, given)
    return session.run(
        profile,
        hooks,
        log_format=given["log_format"],
        key_variable=given["api_key_env"],
        first=(chosen, *notices),
    )
