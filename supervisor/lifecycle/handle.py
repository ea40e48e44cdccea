"""`Supervised`, the handle that a host gets at READY: what runs, and the seal and resume of it."""

from __future__ import annotations

from supervisor.child import Child
from supervisor.events import State
from supervisor.lifecycle.control import Control


class Supervised:
    """A supervised server, across restarts. `await tg.start(supervise, profile)` returns it once READY."""

    def __init__(self, control: Control) -> None:
        self._control = control

    @property
    def state(self) -> State:
        """Where the lifecycle is now."""
        return self._control.state

    @property
    def child(self) -> Child:
        """The present child; every restart replaces it (same port, another pid)."""
        return self._control.child

    @property
    def url(self) -> str:
        """The base URL of the server, without a trailing slash."""
        return self.child.url

    @property
    def pid(self) -> int | None:
        """The present child's pid; None before its first spawn."""
        return self.child.pid

    async def seal(self) -> None:
        """Quiesces for a snapshot: watchdog off, `before_seal` Steps passed, `sleep` Steps passed, no timer of ours.

        Raises:
            IllegalState: not READY, or a seal or resume is under way.
            StepFailed: a `before_seal` Step refused, or a `sleep` Step failed and the `wake` Steps undid it: the child
                stays READY. Or they did not: the child is replaced, within the restart budget.
            SupervisorError: the child died meanwhile.

        Cancelling the call does not undo the seal.
        """
        await self._control.ask("seal", State.READY)

    async def resume(self) -> None:
        """Serves again after a seal: `wake` Steps, then health, then `after_resume` Steps passed; the watchdog is on.

        A child that fails this is replaced by a cold start, within the restart budget; the call then returns when the
        new child is READY.

        Raises:
            IllegalState: not SEALED, or a resume is under way.
            StepFailed: a `wake` Step raised `StillAsleep`: the child stays SEALED, and may be resumed later.
            SupervisorError: verification failed and nothing is left to try; the supervision has ended with it.
        """
        await self._control.ask("resume", State.SEALED)
