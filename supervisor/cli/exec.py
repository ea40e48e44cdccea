"""`supervise exec COMMAND...`."""

from __future__ import annotations

from typing import Any

import click

from supervisor.cli import session
from supervisor.cli.exits import exits_with_status
from supervisor.cli.options import override, shared_options
from supervisor.engines import PlainServer
from supervisor.loading import variables

__all__ = ["exec_"]


@click.command(
    "exec",
    short_help="Start and watch any HTTP server.",
    options_metavar="[OPTIONS]",
    context_settings={"allow_interspersed_args": False},  # options that follow COMMAND are its own, also without --
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--engine", metavar="NAME", help="Whose server it is; plain: none's.  [as COMMAND tells]")
@shared_options
@exits_with_status
def exec_(command: tuple[str, ...], **given: Any) -> int:
    """Start and watch any HTTP server, until Ctrl-C or SIGTERM.

    COMMAND is a program with its arguments; everything after the program's name belongs to it. In arguments and in
    --env, {port} and {host} stand for where the server must listen. For example:

    \b
      supervise exec --health / python3 -m http.server {port}
    """
    from supervisor.engines import catalogue  # the other commands start without every engine's imports

    kind = catalogue.named(given["engine"]) if given["engine"] else catalogue.guess(command)
    server = PlainServer(command=command, env=variables(given["env"]), port=given["port"] or 0)
    profile, hooks = override(server.profile(), server.hooks(), given)
    profile = kind.adopt(profile)
    hooks = kind.hooks(profile) + hooks
    return session.run(profile, hooks, log_format=given["log_format"], key_variable=given["api_key_env"])
