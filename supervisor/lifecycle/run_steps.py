"""Running Steps: in order, each under its deadline, each reported."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence

import anyio

from supervisor import events
from supervisor.child import Child
from supervisor.emitter import Emitter
from supervisor.errors import StepFailed
from supervisor.steps import Step
from supervisor.timing.limits import running_limit
from supervisor.timing.racing import StrayCancellation, is_cancelled


async def run_steps(point: str, steps: Sequence[Step], child: Child, emit: Emitter) -> None:
    """Runs the Steps of a lifecycle point one after the other; the first failure ends it.

    Raises:
        StepFailed: a Step raised, or overran its deadline. Reasons are redacted.
    """
    for step in steps:
        began = time.monotonic()
        cause = await attempt(step, child)
        took_s = time.monotonic() - began
        if cause is not None:
            reason = child.redact(describe(cause))
            emit(events.StepFailed(point=point, step=step.name, took_s=took_s, reason=reason))
            failure = StepFailed(point=point, step=step.name, took_s=took_s, reason=reason)
            # A cause that holds a secret would show it in every traceback: its masked text must do.
            leaks = any(child.redact(text) != text for text in traceback.format_exception(cause))
            raise failure from (None if leaks else cause)
        passed = events.WarmupPassed if point == "warmup" else events.StepPassed
        emit(passed(point=point, step=step.name, took_s=took_s))


async def attempt(step: Step, child: Child, *, limit_s: float | None = None) -> Exception | None:
    """Runs one Step under its deadline, else `limit_s`, else `timeouts.step_s`; returns what it raised, or None."""
    limit_s = child.profile.timeouts.step_s if limit_s is None else limit_s
    limit_s = limit_s if step.deadline_s is None else step.deadline_s
    try:
        async with running_limit(limit_s) as limit:
            await step(child)
    except Exception as error:  # noqa: BLE001  a Step may raise anything; it becomes StepFailed
        return error
    except anyio.get_cancelled_exc_class():
        if is_cancelled():
            raise
        return StrayCancellation()
    return TimeoutError(f"no result within {limit_s:g} s") if limit.cancelled_caught else None


def describe(error: BaseException) -> str:
    """An exception in one line, with the parts of a group spelled out."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(describe(part) for part in error.exceptions)
    return str(error) or type(error).__name__
