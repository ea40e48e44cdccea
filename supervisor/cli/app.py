"""The command `supervise` and its subcommands, which are a module each."""

from __future__ import annotations

import copy

import click

from supervisor.cli.argv import argv
from supervisor.cli.exec import exec_
from supervisor.cli.exits import prepare_process
from supervisor.cli.gpu_memory import gpu_memory
from supervisor.cli.rehearse import rehearse
from supervisor.cli.run import run
from supervisor.cli.sleep import sleep, wake
from supervisor.cli.smoke import smoke


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="warmboot", prog_name="supervise")
def main() -> None:
    """Start a server, wait until it really serves, watch it, and stop it without leaving anything behind.

    \b
    Exit codes:
      0  stopped on request
      1  the server crashed or hung after it was ready, and was not restarted
      2  an argument or the profile is wrong; nothing was started
      3  the server never became ready
      4  a warmup or a check failed
      5  (rehearse) the server would not survive a snapshot
    """
    prepare_process()


for command in (run, exec_, argv, smoke, rehearse, sleep, wake, gpu_memory):
    main.add_command(command)

_verify = copy.copy(smoke)  # what it was called up to 0.1
_verify.hidden = True
main.add_command(_verify, "verify")
