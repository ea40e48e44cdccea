"""`supervise run`, `supervise exec`, `supervise argv`."""

from __future__ import annotations

import shlex
from typing import Any

import click

from supervisor.child import Child
from supervisor.cli import session
from supervisor.cli.ending import settle, speaks
from supervisor.cli.options import override, shared_options, variables
from supervisor.cli.spec import load
from supervisor.cli.verify import verify
from supervisor.engines import PlainServer
from supervisor.redact import Redactor
from supervisor.rehearsal.command import rehearse


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="warmboot", prog_name="supervise")
def main() -> None:
    """Run a server as a child process, prove that it is ready, and keep it so.

    Exit codes: 0 stopped on request; 1 crashed after READY and the budget is spent; 2 bad arguments or profile; 3 never
    became ready; 4 a warmup or verification step failed; 5 (`rehearse`) it would not survive a snapshot.
    """
    settle()


@main.command("run", short_help="Supervise a profile, or `local`: Gemma 3 270M.")
@click.argument("spec")
@shared_options
@speaks
def run_command(spec: str, **given: Any) -> int:
    """Supervise the profile SPEC: module:attribute, path/file.py:attribute, or `local` (Gemma 3 270M on llama.cpp)."""
    profile, hooks = override(*load(spec), given)
    return session.run(profile, hooks, log_format=given["log_format"], key_variable=given["api_key_env"])


@main.command("exec", short_help="Supervise any HTTP server.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@shared_options
@speaks
def exec_command(command: tuple[str, ...], **given: Any) -> int:
    """Supervise any HTTP server: supervise exec [OPTIONS] -- COMMAND...  ({port} and {host} are substituted)."""
    server = PlainServer(command=command, env=variables(given["env"]), port=given["port"] or 0)
    profile, hooks = override(server.profile(), server.hooks(), given)
    return session.run(profile, hooks, log_format=given["log_format"], key_variable=given["api_key_env"])


@main.command("argv", short_help="Print the command that a profile would run.")
@click.argument("spec")
@shared_options
@speaks
def argv_command(spec: str, **given: Any) -> int:
    """Print the command that SPEC would run, with secrets masked."""
    profile, _ = override(*load(spec), given)
    child = Child(profile=profile, port=profile.port, pid=None, redact=Redactor(profile.secrets))
    click.echo(shlex.join(child.redact.argv(child.argv)))
    return 0


main.add_command(verify)
main.add_command(rehearse)
