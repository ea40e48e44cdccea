"""`supervise run`, `supervise exec`, `supervise argv`."""

from __future__ import annotations

import shlex
from typing import Any

import click

from supervisor.child import Child
from supervisor.cli import session
from supervisor.cli.exits import exits_with_status, prepare_process
from supervisor.cli.options import override, shared_options
from supervisor.cli.rehearse import rehearse
from supervisor.cli.verify import verify
from supervisor.engines import PlainServer
from supervisor.loading import load, variables
from supervisor.redact import Redactor


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="warmboot", prog_name="supervise")
def main() -> None:
    """Run a server as a child process, prove that it is ready, and keep it so.

    Exit codes: 0 stopped on request; 1 crashed after READY and the budget is spent; 2 bad arguments or profile; 3 never
    became ready; 4 a warmup or verification step failed; 5 (`rehearse`) it would not survive a snapshot.
    """
    prepare_process()


@main.command("run", short_help="Supervise a profile, or `local`: Gemma 3 270M.")
@click.argument("profile_name", metavar="PROFILE")
@shared_options
@exits_with_status
def run_command(profile_name: str, **given: Any) -> int:
    """Supervise PROFILE: module:attribute, path/file.py:attribute, or a registered name such as `local`."""
    profile, hooks = override(*load(profile_name), given)
    return session.run(profile, hooks, log_format=given["log_format"], key_variable=given["api_key_env"])


@main.command(
    "exec",
    short_help="Supervise any HTTP server.",
    context_settings={"allow_interspersed_args": False},  # options that follow COMMAND are its own, also without --
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@shared_options
@exits_with_status
def exec_command(command: tuple[str, ...], **given: Any) -> int:
    """Supervise any HTTP server: supervise exec [OPTIONS] COMMAND...  ({port} and {host} are substituted)."""
    server = PlainServer(command=command, env=variables(given["env"]), port=given["port"] or 0)
    profile, hooks = override(server.profile(), server.hooks(), given)
    return session.run(profile, hooks, log_format=given["log_format"], key_variable=given["api_key_env"])


@main.command("argv", short_help="Print the command that a profile would run.")
@click.argument("profile_name", metavar="PROFILE")
@shared_options
@exits_with_status
def argv_command(profile_name: str, **given: Any) -> int:
    """Print the command that PROFILE would run, with secrets masked."""
    profile, _ = override(*load(profile_name), given)
    child = Child(profile=profile, port=profile.port, pid=None, redact=Redactor(profile.secrets))
    click.echo(shlex.join(child.redact.argv(child.argv)))
    return 0


main.add_command(verify)
main.add_command(rehearse)
