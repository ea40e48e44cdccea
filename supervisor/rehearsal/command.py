"""`supervise rehearse SPEC`: cold start, seal, checkpoint, drift, restore, resume, answer, in a gVisor sandbox."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any, TextIO

import anyio
import anyio.to_thread
import click

from supervisor.cli.ending import speaks
from supervisor.cli.options import override, shared_options
from supervisor.cli.reports import json_option, show, write
from supervisor.cli.signals import Signals
from supervisor.cli.spec import load
from supervisor.errors import ProfileError, SupervisorError
from supervisor.redact import Redactor
from supervisor.rehearsal.bundle import Mount
from supervisor.rehearsal.drift import CLOCK_S, KINDS, drifted_env, staged
from supervisor.rehearsal.report import Report
from supervisor.rehearsal.sandbox import Sandbox, SandboxUnavailable, runsc
from supervisor.rehearsal.stages import StageFailed, Stages, let_go
from supervisor.rehearsal.subject import EXCHANGE, Subject, of_entry, of_profile, prepared

__all__ = ["rehearse"]


@click.command("rehearse", short_help="Snapshot and restore a server in a sandbox here.")
@click.argument("spec")
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
@speaks
def rehearse(spec: str, out: TextIO | None, **given: Any) -> int:
    """Snapshot and restore SPEC in a gVisor sandbox on this machine, and prove that it survives.

    SPEC is that of `run`, or the file of a Modal entry, which then runs under Modal's own container entrypoint; its
    volumes are given by --mount, its key by --env API_KEY=... A profile that has neither snapshot contract nor golden
    answers gets them, and one that restarts never restarts on a resume. Needs `runsc` and root; there is no GPU.

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
    if given["inside"]:
        from supervisor.rehearsal.inside import inside

        profile, hooks = prepared(*override(*load(spec), given), given)
        return inside(profile, hooks, given["inside"])
    runsc()
    subject = of_entry(spec, given) if spec.endswith(".py") else of_profile(spec, given)
    report = Report(spec=spec, drift=given["drift"], contract=not given["no_contract"], golden=not given["no_golden"])
    report.suspended_s = max(given["suspend_s"], CLOCK_S if "clock" in given["drift"] else 0.0)
    try:
        anyio.run(_attended, subject, report)
    finally:
        write(report, out)
    show(report, out)
    return report.exit_status


async def _attended(subject: Subject, report: Report) -> None:
    """Rehearses until done, or until a signal asks to stop; a second one does not wait. The report tells all."""
    signals = Signals(lambda number: os._exit(128 + number))  # the guardian ends the sandbox
    failure: Exception | None = None
    try:
        async with anyio.create_task_group() as tasks:

            async def listen() -> None:
                number = await signals.stop_requested()
                report.failure, report.status = f"interrupted by {signal.Signals(number).name}", 128 + number
                rehearsal.cancel()

            tasks.start_soon(listen)
            with anyio.CancelScope() as rehearsal:
                try:
                    await _rehearse(subject, report)
                except StageFailed as failed:
                    report.failure, report.point, report.status = failed.summary, failed.point, failed.status
                except SupervisorError as error:
                    report.failure, report.status = str(error), error.cli_status
                    failure = error if isinstance(error, SandboxUnavailable | ProfileError) else None
                except Exception as error:  # noqa: BLE001  raised again below, outside the group
                    report.failure, report.status, failure = f"{type(error).__name__}: {error}", 1, error
            tasks.cancel_scope.cancel()
    finally:
        signals.close()
    if failure is not None:
        raise failure


async def _rehearse(subject: Subject, report: Report) -> None:
    stages = Stages()

    def on_line(stream: str, line: str) -> None:
        if stream == "stdout" and stages.see(line):
            return
        report.see(line)
        click.echo(line, err=True)

    if subject.before is not None:
        await subject.before()
    with tempfile.TemporaryDirectory(prefix="warmboot-rehearsal-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        exchange = folder / "exchange"
        exchange.mkdir()
        copies, drift = await anyio.to_thread.run_sync(staged, subject.weights, report.drift, folder / "weights")
        mounts = (*subject.mounts, *copies, Mount(source=exchange, target=EXCHANGE))
        sandbox = Sandbox(
            folder,
            argv=subject.argv,
            env=subject.env,
            cwd=Path.cwd(),
            redact=Redactor(subject.secrets),
            on_line=on_line,
        )
        began = time.monotonic()
        async with sandbox.run(mounts) as running:
            ready = await stages.wait("ready", running)
            report.cold_s = ready.at - (stages.reached["deployed"].at if "deployed" in stages.reached else began)
            report.seal_s = (await stages.wait("sealed", running)).took_s
            saving = time.monotonic()
            report.image_bytes = await sandbox.checkpoint()
            report.checkpoint_s = time.monotonic() - saving
        saved = time.monotonic()
        report.strays = await anyio.to_thread.run_sync(subject.strays, sandbox.image)
        await anyio.to_thread.run_sync(drift)
        await anyio.sleep(max(0.0, report.suspended_s - (time.monotonic() - saved)))
        let_go(exchange, drifted_env(report.drift, subject.key_variable))
        report.restore_began = time.monotonic()
        report.suspended_s = report.restore_began - saved
        try:
            async with sandbox.run(mounts, restore=True) as running:
                await stages.wait("stopped", running)
        finally:
            report.restored(stages.reached)
