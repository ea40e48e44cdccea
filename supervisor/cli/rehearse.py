"""`supervise rehearse PROFILE`: a snapshot and a restore in a gVisor sandbox, on this machine, before a deploy."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TextIO

import anyio
import click

from supervisor.cli.command import of_command
from supervisor.cli.exits import exits_with_status
from supervisor.cli.options import override, shared_options
from supervisor.cli.reports import json_option, show, write
from supervisor.cli.signals import Signals
from supervisor.errors import require
from supervisor.loading import load
from supervisor.logs.sink import LogFormat
from supervisor.profile import Profile
from supervisor.rehearsal.drift import KINDS
from supervisor.rehearsal.entries import of_entry
from supervisor.rehearsal.log import for_people
from supervisor.rehearsal.rehearse import rehearse as rehearse_subject
from supervisor.rehearsal.report import RehearsalReport
from supervisor.rehearsal.request import RehearsalRequest, mounts_of
from supervisor.rehearsal.sandbox import runsc
from supervisor.rehearsal.subject import EXCHANGE, Subject, of_profile
from supervisor.steps import Hooks
from supervisor.timing.racing import race

__all__ = ["rehearse"]

_OF_ENTRIES: Final = ("env", "drift", "suspend_s", "mounts", "log_format")  # the other options are a profile's


@click.command("rehearse", short_help="Snapshot and restore a server in a sandbox here.")
@click.argument("words", metavar="PROFILE|COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--engine", metavar="NAME", help="Whose server COMMAND starts; plain: none's.  [as COMMAND tells]")
@click.option(
    "--drift", multiple=True, type=click.Choice(tuple(KINDS)), help="What is different at the restore. Repeatable."
)
@click.option(
    "--suspend-s", type=click.FloatRange(min=0), default=0.0, help="How long it lies saved.  [0; 30 for clock]"
)
@click.option("--no-contract", is_flag=True, help="Leave the snapshot contract out, to see what it prevents.")
@click.option("--no-golden", is_flag=True, help="Leave the golden answer out.")
@click.option("--mount", "mounts", multiple=True, metavar="FOLDER:PATH", help="What a volume holds, and where it goes.")
@json_option
@click.option("--inside", type=Path, hidden=True)
@shared_options
@exits_with_status
def rehearse(words: tuple[str, ...], out: TextIO | None, **given: Any) -> int:
    """Snapshot and restore PROFILE in a gVisor sandbox on this machine, and prove that it survives.

    PROFILE is that of `run`, or the file of a Modal entry, which then runs under Modal's own container entrypoint; its
    volumes are given by --mount, its key by --env API_KEY=... COMMAND is that of `exec`, of two words
    or more, and follows a --. A profile that has neither snapshot contract nor golden answers gets them, and one that
    restarts never restarts on a resume. Needs `runsc` and root; there is no GPU.

    \b
    --drift weights            another file of the same size is in place of the weights
    --drift weights-moved      they have another name
    --drift weights-truncated  they have lost their second half
    --drift clock              30 s pass
    --drift env                proxies, time zone and key are others
    Weights drift in a copy; the real files are never changed.

    Exit codes: 0 it survives; 5 contract, golden answer or restore failed; others as for `run`: 2 bad arguments or no
    sandbox, 3 never ready, 4 a warmup failed.
    """
    request = RehearsalRequest(
        name=words[0],
        drift=given["drift"],
        suspend_s=given["suspend_s"],
        contract=not given["no_contract"],
        golden=not given["no_golden"],
        mounts=() if given["inside"] else mounts_of(given["mounts"]),  # in the sandbox they are mounted already
    )
    if given["inside"]:
        from supervisor.rehearsal.inside import inside

        return inside(*_profile(words, given), request, given["inside"])
    runsc()
    subject = _subject(words, request, given)
    report = RehearsalReport(request=request)
    try:
        anyio.run(_until_signalled, subject, request, report, _writer(given["log_format"]))
    finally:
        write(report, out)
    show(report, out)
    return report.exit_status


def _profile(words: tuple[str, ...], given: dict[str, Any]) -> tuple[Profile, Hooks]:
    """What `run` would run, of one word; of more, what `exec` would."""
    if len(words) > 1:
        return of_command(words, given)[:2]
    require(not given["engine"], "--engine", given["engine"], "left out: a profile says how its server speaks")
    return override(*load(words[0]), given)


def _subject(words: tuple[str, ...], request: RehearsalRequest, given: dict[str, Any]) -> Subject:
    if len(words) == 1 and words[0].endswith(".py"):
        for name, value in given.items():
            option = f"--{name.replace('_', '-')}"
            allowed = "left out: an entry is rehearsed as its own file says"
            require(name in _OF_ENTRIES or not value, option, value, allowed)
        return of_entry(Path(words[0]).resolve(), request, given["env"])
    # In the sandbox the same command runs again, to load the same profile with the same options.
    name, *options = sys.argv[1:]
    again = (sys.executable, "-m", "supervisor", name, "--inside", str(EXCHANGE), *_without_json(options))
    return of_profile(*_profile(words, given), request, argv=again)


def _writer(log_format: LogFormat) -> Callable[[str], None]:
    """What writes a line of the sandbox's log, whose events are JSON, to stderr."""
    show = str if log_format == "json" else for_people()
    return lambda line: click.echo(show(line), err=True)


async def _until_signalled(
    subject: Subject, request: RehearsalRequest, report: RehearsalReport, on_line: Callable[[str], None]
) -> None:
    """Rehearses until done, or until a signal asks to stop; a second one does not wait."""

    async def rehearsal() -> None:
        await rehearse_subject(subject, request, report, on_line=on_line)

    signals = Signals(lambda number: os._exit(128 + number))  # the guardian ends the sandbox
    try:
        number = await race(rehearsal, signals.stop_requested)
    finally:
        signals.close()
    if number is not None:
        report.failure, report.status = f"interrupted by {signal.Signals(number).name}", 128 + number


def _without_json(argv: Sequence[str]) -> list[str]:
    """The command line without `--json FILE`, which the command outside writes; what follows `--` stays as it is."""
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--":
            return [*kept, word, *words]
        if word == "--json":
            next(words, None)
        elif not word.startswith("--json="):
            kept.append(word)
    return kept
