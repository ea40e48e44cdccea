"""Running Steps: in order, each under its deadline, each reported."""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from typing import Final

import anyio

from supervisor import events
from supervisor.child import Child
from supervisor.emitter import Emitter
from supervisor.errors import StepFailed
from supervisor.steps import Step
from supervisor.timing.limits import running_limit
from supervisor.timing.racing import StrayCancellation, is_cancelled

_MOST_PARTS: Final = 20  # of a group, in a sentence


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
            leaks = _holds_secret(cause, child)
            raise failure from (None if leaks else cause)
        passed = events.WarmupPassed if point == "warmup" else events.StepPassed
        emit(passed(point=point, step=step.name, took_s=took_s))


def _holds_secret(cause: Exception, child: Child) -> bool:
    try:
        return any(child.redact(text) != text for text in traceback.format_exception(cause))
    except Exception:  # noqa: BLE001  a traceback that cannot be shown is none to hand on
        return True


async def attempt(step: Step, child: Child, *, limit_s: float | None = None) -> Exception | None:
    """Runs one Step under its deadline, else `limit_s`, else `timeouts.step_s`; returns what it raised, or None."""
    limit_s = child.profile.timeouts.step_s if limit_s is None else limit_s
    limit_s = limit_s if step.deadline_s is None else step.deadline_s
    try:
        async with running_limit(limit_s) as limit:
            await step(child)
    except Exception as error:  # noqa: BLE001  a Step may raise anything; it becomes StepFailed
        return error
    except SystemExit as error:  # sys.exit() in a Step is a failure of the Step, not the end of the host
        return RuntimeError(f"it called sys.exit({error.code!r})")
    except anyio.get_cancelled_exc_class():
        if is_cancelled():
            raise
        return StrayCancellation()
    return TimeoutError(f"no result within {limit_s:g} s") if limit.cancelled_caught else None


def describe(error: BaseException) -> str:
    """An exception in one line, with the parts of a group spelled out. Never raises, whatever the exception does."""
    texts: list[str] = []
    pending: list[BaseException] = [error]
    while pending and len(texts) < _MOST_PARTS:
        part = pending.pop()
        if isinstance(part, BaseExceptionGroup):
            pending.extend(reversed(part.exceptions))
            continue
        try:
            text = str(part)
        except Exception:  # noqa: BLE001  its own __str__ may raise anything
            text = ""
        texts.append(text or type(part).__name__)
    return "; ".join([*texts, *(["..."] if pending else [])])
