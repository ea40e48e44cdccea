"""The restart budget: how long to wait before the next life, or why there is none. Pure but for the jitter."""

from __future__ import annotations

import random

from supervisor.profile import Restart


class RestartBudget:
    """Counts failed lives under a policy.

    Attributes:
        attempt: restarts granted since the budget was last full.
    """

    def __init__(self, policy: Restart, *, uniform: random.Random | None = None) -> None:
        self._policy = policy
        self._random = uniform or random.Random()  # noqa: S311  jitter is no secret
        self._never_ready = 0
        self.attempt = 0

    def next_delay_s(self, *, ready_s: float | None, resuming: bool = False) -> float | str:
        """After a failed life: seconds to wait before the next one, or the reason that there is none.

        Args:
            ready_s: how long that life was READY; None: it never was.
            resuming: a resume waits for a child that serves.
        """
        policy = self._policy
        if policy.policy == "never":
            return "the restart policy is 'never'"
        if policy.policy == "on-resume" and not resuming:
            return "the restart policy is 'on-resume', and no resume is under way"
        self._never_ready = self._never_ready + 1 if ready_s is None else 0
        if ready_s is not None and ready_s >= policy.reset_after_s:
            self.attempt = 0
        if self._never_ready >= policy.crash_loop_after:
            return f"crash loop: {self._never_ready} lives in a row never became ready"
        if self.attempt >= policy.max_restarts:
            return f"the budget of {policy.max_restarts} restarts is spent"
        delay_s = min(policy.backoff_s * 2.0 ** min(self.attempt, 64), policy.backoff_max_s)
        self.attempt += 1
        return min(delay_s * (1 + policy.jitter * self._random.uniform(-1, 1)), policy.backoff_max_s)
