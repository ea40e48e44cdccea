"""`supervise sleep PID|NAME` and `supervise wake PID|NAME`."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from supervisor.cli.exits import exits_with_status
from supervisor.control import client
from supervisor.control.messages import Outcome, Refusal, outcome_in, status_in
from supervisor.errors import ProfileError

if TYPE_CHECKING:
    from supervisor.control.client import Found
    from supervisor.control.messages import Operation

__all__ = ["sleep", "wake"]

_json_flag = click.option(
    "--json", "as_json", is_flag=True, help="Print what was done as JSON; a failure is told in words, on stderr."
)


@click.command("sleep", short_help="Put a running server to sleep: its GPU memory is free for another.")
@click.argument("which", metavar="PID|NAME")
@_json_flag
@exits_with_status
def sleep(which: str, *, as_json: bool) -> int:
    """Put a server of `run` or `exec` on this host to sleep, as a seal does, and wait until it sleeps.

    PID is the server's or its supervisor's, NAME that of --name or of the profile. With --gpu-memory offload its GPU
    memory is put aside and given back to the GPU, and the engine's own sleep Steps run if the profile has some. While
    it sleeps nobody may send it a request, and nothing watches it. Interrupting this command does not undo the sleep.

    Exit codes: 0 it sleeps, also if it did before; 1 it cannot now; 2 no such server; 4 a check or the sleep failed.
    """
    return _ask(which, "seal", as_json=as_json)


@click.command("wake", short_help="Wake a server that sleeps: the same answers as before.")
@click.argument("which", metavar="PID|NAME")
@_json_flag
@exits_with_status
def wake(which: str, *, as_json: bool) -> int:
    """Wake a server that sleeps on this host, as a resume does, and wait until it serves again.

    PID is the server's or its supervisor's, NAME that of --name or of the profile. Its memory is brought back, its
    health and its golden answers are checked. One that died asleep is replaced by a cold start where --restart allows.

    Exit codes: 0 it serves, also if it did before; 1 it cannot now, or it has died; 2 no such server; 4 it failed.
    """
    return _ask(which, "resume", as_json=as_json)


def _ask(which: str, operation: Operation, *, as_json: bool) -> int:
    found = _one(which)
    try:
        said = client.ask(found.socket, operation)
        if as_json:
            import json

            click.echo(json.dumps(said))
        else:
            click.echo(_told(outcome_in(said)))
    except (OSError, Refusal) as error:
        words = error.detail if isinstance(error, Refusal) else "the supervisor has ended meanwhile"
        click.echo(f"supervise: {found}: {words}{_now(found)}", err=True)
        return error.exit_status if isinstance(error, Refusal) else 1
    return 0


def _now(found: Found) -> str:
    """How the server is after a refusal: what stands before the words was seen before it."""
    with suppress(OSError, Refusal):
        return f" It is {status_in(client.ask(found.socket, 'state')).state} now."
    return ""


def _one(which: str) -> Found:
    """The only supervisor that is meant.

    Raises:
        ProfileError: none is, or several are; it lists them.
    """
    running = client.running()
    meant = [found for found in running if which in _names(found)]
    if len(meant) == 1:
        return meant[0]
    listed = meant or running
    allowed = "the PID or NAME of a server that `supervise run` or `exec` of this user runs here"
    if meant:
        allowed = "one server: say its PID"
    runs = f"Running: {'; '.join(map(str, listed))}" if listed else "None runs now"
    raise ProfileError(field="PID|NAME", value=which, allowed=f"{allowed}. {runs}")


def _names(found: Found) -> set[str]:
    status, names = found.status, {str(found.supervisor_pid)}
    if status is not None:
        names |= {status.name, str(status.supervisor_pid)}
    if status is not None and status.pid is not None:
        names.add(str(status.pid))
    return names


def _told(outcome: Outcome) -> str:
    status = outcome.status
    server = f"{status.name} (pid {status.pid})"
    if outcome.already:
        what = "sleeps already" if outcome.operation == "seal" else "is awake already"
        return f"{server} {what}, for {max(time.time() - status.since_unix_s, 0):.1f} s now."
    took = f"after {outcome.took_s:.2f} s"
    if outcome.replaced:
        first = f"{server} serves at {status.url} {took}: a cold start has replaced the process that slept."
    elif outcome.operation == "seal":
        first = f"{server} sleeps {took}."
    else:
        first = f"{server} serves at {status.url} again {took}."
    moved = outcome.gpu_memory
    if moved is not None:
        where = "put aside" if outcome.operation == "seal" else "brought back"
        first += f" {_size(moved.bytes)} of GPU memory {where} in {moved.took_s:.2f} s"
        first += f" ({_size(moved.stored_bytes)} through host memory at {moved.gb_per_s:.1f} GB/s)."
    steps = [f"  {took.point:<12} {took.step:<28} {took.took_s:7.2f} s" for took in outcome.steps]
    notices = [f"  note: {notice}" for notice in outcome.notices]
    if outcome.operation == "seal" and not any(took.point == "sleep" for took in outcome.steps):
        notices.append("  note: no Step put anything aside; start it with --gpu-memory offload to free GPU memory.")
    return "\n".join([first, *steps, *notices])


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"
