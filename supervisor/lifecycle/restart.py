"""Whether a failed run is followed by another one, and after what delay. Pure but for the jitter."""

from __future__ import annotations

import errno
import random
from dataclasses import dataclass
from typing import Final

from supervisor.errors import PortTaken, ProfileError, SpawnError, SupervisorError, WrongModel
from supervisor.linux.exhaustion import detect
from supervisor.profile import Restart

_SPAWN_AGAIN: Final = {errno.EAGAIN, errno.ETXTBSY}  # too many processes just now; the file is being written


@dataclass(frozen=True, slots=True, kw_only=True)
class NoRestart:
    """There is no further run, and why."""

    reason: str


def is_final(error: SupervisorError, *, first_start: bool, was_ready: bool) -> bool:
    """Whether another run would end the same way, so that no restart is tried.

    Args:
        error: how the run ended.
        first_start: no run came before it. What is wrong then is wrong with the setting, and the user waits for it.
        was_ready: the run had been READY, so that its settings are right and something else has happened, for example
            during a snapshot: a fresh child may well serve.
    """
    if was_ready:
        return isinstance(error, ProfileError)
    match error:
        case ProfileError() | WrongModel():
            return True
        case PortTaken():
            return first_start
        case SpawnError():
            return first_start or not _passes(error)
    return False


def _passes(error: SpawnError) -> bool:
    """Whether the system may be able to start the same command a moment later."""
    cause = error.__cause__
    return detect(cause) is not None or (isinstance(cause, OSError) and cause.errno in _SPAWN_AGAIN)


class RestartBudget:
    """Counts failed runs under a policy.

    Attributes:
        attempt: restarts granted since the budget was last full.
    """

    def __init__(self, policy: Restart, *, uniform: random.Random | None = None) -> None:
        self._policy = policy
        self._random = uniform or random.Random()  # noqa: S311  jitter is no secret
        self._never_ready = 0
        self.attempt = 0

    def next_delay_s(self, *, ready_s: float | None, resuming: bool = False) -> float | NoRestart:
        """After a failed run: seconds to wait before the next one, or why there is none.

        Args:
            ready_s: how long that run was READY; None: it never was.
            resuming: a resume waits for a child that serves.
        """
        policy = self._policy
        if policy.policy == "never":
            return NoRestart(reason="the restart policy is 'never'")
        if policy.policy == "on-resume" and not resuming:
            return NoRestart(reason="the restart policy is 'on-resume', and no resume is under way")
        self._never_ready = self._never_ready + 1 if ready_s is None else 0
        if ready_s is not None and ready_s >= policy.reset_after_s:
            self.attempt = 0
        if self._never_ready >= policy.crash_loop_after:
            return NoRestart(reason=f"crash loop: {self._never_ready} runs in a row never became ready")
        if self.attempt >= policy.max_restarts:
            return NoRestart(reason=f"the budget of {policy.max_restarts} restarts is spent")
        delay_s = min(policy.backoff_s * 2.0 ** min(self.attempt, 64), policy.backoff_max_s)
        self.attempt += 1
        return min(delay_s * (1 + policy.jitter * self._random.uniform(-1, 1)), policy.backoff_max_s)
