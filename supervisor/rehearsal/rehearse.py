"""One rehearsal: cold start, seal, checkpoint, drift, restore, resume, answer, in a gVisor sandbox."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import anyio
import anyio.to_thread

from supervisor.errors import ProfileError, SupervisorError
from supervisor.redact import Redactor
from supervisor.rehearsal.bundle import Mount
from supervisor.rehearsal.drift import drifted_env, staged
from supervisor.rehearsal.event_loop import POLLING, WORDS
from supervisor.rehearsal.report import RehearsalReport
from supervisor.rehearsal.request import RehearsalRequest
from supervisor.rehearsal.sandbox import ListenerNotSaved, Sandbox, SandboxUnavailable
from supervisor.rehearsal.stages import StageFailed, Stages, release
from supervisor.rehearsal.subject import EXCHANGE, Subject

__all__ = ["rehearse"]


async def rehearse(
    subject: Subject, request: RehearsalRequest, report: RehearsalReport, *, on_line: Callable[[str], None]
) -> None:
    """Rehearses until the restored server has answered and stopped, or until something fails.

    A server with a listener that this runsc cannot save is rehearsed once more, with an event loop that it can save.

    A failure of the server or of the snapshot is in the report, and raises nothing. Cancelling ends the sandbox; the
    report then holds what was seen until then.

    Args:
        subject: what is rehearsed.
        request: how.
        report: is filled in on the way, so that its owner has it after a cancellation too.
        on_line: sees each line of the log as it comes; must not block.

    Raises:
        SandboxUnavailable: this machine has no sandbox.
        ProfileError: the weights cannot drift.
    """
    try:
        try:
            await _rehearse(subject, request, report, on_line)
        except ListenerNotSaved as error:
            on_line(f"{error.summary} Once more, with {WORDS}.")
            report.begin_again(WORDS)
            await _rehearse(replace(subject, env={**subject.env, POLLING: "1"}), request, report, on_line)
    except StageFailed as failed:
        report.failure, report.point, report.status = failed.summary, failed.point, failed.status
    except (SandboxUnavailable, ProfileError) as error:
        report.failure, report.status = str(error), error.cli_status
        raise
    except SupervisorError as error:
        report.failure, report.status = str(error), error.cli_status
    except Exception as error:
        report.failure, report.status = f"{type(error).__name__}: {error}", 1
        raise


async def _rehearse(
    subject: Subject, request: RehearsalRequest, report: RehearsalReport, on_line: Callable[[str], None]
) -> None:
    stages = Stages()

    def see(stream: str, line: str) -> None:
        if stream == "stdout" and stages.see(line):
            return
        report.see(line)
        on_line(line)

    if subject.before is not None:
        await subject.before()
    with tempfile.TemporaryDirectory(prefix="warmboot-rehearsal-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        exchange = folder / "exchange"
        exchange.mkdir()
        copies, drift = await anyio.to_thread.run_sync(staged, subject.weights, request.drift, folder / "weights")
        mounts = (*subject.mounts, *copies, Mount(source=exchange, target=EXCHANGE))
        sandbox = Sandbox(
            folder,
            argv=subject.argv,
            env=subject.env,
            cwd=Path.cwd(),
            redact=Redactor(subject.secrets),
            on_line=see,
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
        await anyio.sleep(max(0.0, request.suspended_s - (time.monotonic() - saved)))
        release(exchange, drifted_env(request.drift, subject.key_variable))
        report.restore_began = time.monotonic()
        report.suspended_s = report.restore_began - saved
        try:
            async with sandbox.run(mounts, restore=True) as running:
                await stages.wait("stopped", running)
        finally:
            report.restored(stages.reached)
