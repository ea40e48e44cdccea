"""`supervise argv PROFILE`."""

from __future__ import annotations

import shlex
from typing import Any

import click

from supervisor.child import Child
from supervisor.cli.exits import exits_with_status
from supervisor.cli.options import override, shared_options
from supervisor.loading import load
from supervisor.redact import Redactor

__all__ = ["argv"]


@click.command("argv", short_help="Print the command line of a profile's server.")
@click.argument("profile_name", metavar="PROFILE")
@shared_options
@exits_with_status
def argv(profile_name: str, **given: Any) -> int:
    """Print the command line that `run PROFILE` would start, with secrets masked; start nothing."""
    profile, _ = override(*load(profile_name), given)
    child = Child(profile=profile, port=profile.port, pid=None, redact=Redactor(profile.secrets))
    click.echo(shlex.join(child.redact.argv(child.argv)))
    return 0
