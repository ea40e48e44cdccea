"""The handle that a host gets at READY: what runs, and the seal and resume of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import anyio

from supervisor.child import Child
from supervisor.emitter import Emitter
from supervisor.errors import IllegalState
from supervisor.events import State


@dataclass(eq=False, slots=True)
class Request:
    """A transition that the host asked for; answered once, with an error or without."""

    wanted: Literal["seal", "resume"]
    _done: anyio.Event = field(default_factory=anyio.Event)
    _error: BaseException | None = None

    def answer(self, error: BaseException | None = None) -> None:
        """Lets the host go on; only the first answer counts."""
        if not self._done.is_set():
            self._error = error
            self._done.set()

    async def wait(self) -> None:
        """Waits for the answer and raises its error."""
        await self._done.wait()
        if self._error is not None:
            raise self._error


class Supervised:
    """A supervised server, across restarts. `await tg.start(supervise, profile)` returns it once READY.

    Every restart replaces `child` (same port, another pid).
    """

    def __init__(self, emitter: Emitter, child: Child) -> None:
        self._emitter = emitter
        self._request: Request | None = None
        self._arrived = anyio.Event()
        self.child = child

    @property
    def state(self) -> State:
        """Where the lifecycle is now."""
        return self._emitter.state or State.STARTING

    @property
    def url(self) -> str:
        """The base URL of the server, without a trailing slash."""
        return self.child.url

    @property
    def pid(self) -> int | None:
        """The present child's pid; None before its first spawn."""
        return self.child.pid

    async def seal(self) -> None:
        """Quiesces for a snapshot: watchdog off, `before_seal` Steps passed, no timer and no socket of ours left.

        Raises:
            IllegalState: not READY, or a seal or resume is under way.
            StepFailed: a `before_seal` Step refused; the child stays READY.
            SupervisorError: the child died meanwhile.

        Cancelling the call does not undo the seal.
        """
        await self._ask("seal", State.READY)

    async def resume(self) -> None:
        """Serves again after a seal: child alive, health green, `after_resume` Steps passed, watchdog armed.

        A child that fails this is replaced by a cold start, within the restart budget; the call then returns when the
        new child is READY.

        Raises:
            IllegalState: not SEALED, or a resume is under way.
            SupervisorError: verification failed and nothing is left to try; the supervision has ended with it.
        """
        await self._ask("resume", State.SEALED)

    async def _ask(self, wanted: Literal["seal", "resume"], needs: State) -> None:
        if self._request is not None:
            raise IllegalState(operation=wanted, state=f"a {self._request.wanted} is under way", allowed="its end")
        if self.state is not needs:
            raise IllegalState(operation=wanted, state=str(self.state), allowed=str(needs))
        request = self._request = Request(wanted)
        self._arrived.set()
        await request.wait()

    # What follows is the lifecycle's side.

    async def next_request(self) -> Request:
        """Waits, without any timer, for what the host asks next; it stays pending until `answer`."""
        await self._arrived.wait()
        assert self._request
        self._arrived = anyio.Event()
        return self._request

    def pending(self, wanted: Literal["seal", "resume"]) -> bool:
        """Whether such a request waits for its answer."""
        return self._request is not None and self._request.wanted == wanted

    def answer(self, error: BaseException | None = None) -> None:
        """Answers the pending request, if there is one."""
        if self._request is not None:
            request, self._request = self._request, None
            self._arrived = anyio.Event()
            request.answer(error)
