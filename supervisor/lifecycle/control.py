"""What the host's handle and the lifecycle share: the present child, and what the host asks for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import anyio

from supervisor.child import Child
from supervisor.emitter import Emitter
from supervisor.errors import IllegalState
from supervisor.events import State

Operation = Literal["seal", "resume"]


@dataclass(eq=False, slots=True)
class Request:
    """A transition that the host asked for; answered once, with an error or without."""

    operation: Operation
    _answered: anyio.Event = field(default_factory=anyio.Event)
    _error: BaseException | None = None

    def answer(self, error: BaseException | None = None) -> None:
        """Lets the host go on; only the first answer counts."""
        if not self._answered.is_set():
            self._error = error
            self._answered.set()

    async def wait(self) -> None:
        """Waits for the answer and raises its error."""
        await self._answered.wait()
        if self._error is not None:
            raise self._error


class Control:
    """The link between a host and its lifecycle: one request at a time.

    Attributes:
        child: the present one; the lifecycle replaces it at every spawn.
    """

    def __init__(self, emit: Emitter, child: Child) -> None:
        self._emit = emit
        self._request: Request | None = None
        self._arrived = anyio.Event()
        self.child = child

    @property
    def state(self) -> State:
        """Where the lifecycle is now."""
        return self._emit.state or State.STARTING

    async def ask(self, operation: Operation, needs: State) -> None:
        """The host's side: asks for a transition and waits for the answer.

        Raises:
            IllegalState: the lifecycle is in another state than `needs`, or a request is pending.
            SupervisorError: what the lifecycle answered.
        """
        if self._request is not None:
            raise IllegalState(
                operation=operation, state=f"a {self._request.operation} is under way", allowed="its end"
            )
        if self.state is not needs:
            raise IllegalState(operation=operation, state=str(self.state), allowed=str(needs))
        request = self._request = Request(operation)
        self._arrived.set()
        await request.wait()

    async def next_request(self) -> None:
        """The lifecycle's side: waits, without any timer, until the host asks; pending from then on until `answer`."""
        await self._arrived.wait()
        self._arrived = anyio.Event()

    def pending(self, operation: Operation) -> bool:
        """Whether such a request waits for its answer."""
        return self._request is not None and self._request.operation == operation

    def answer(self, error: BaseException | None = None) -> None:
        """Answers the pending request, if there is one."""
        if self._request is not None:
            request, self._request = self._request, None
            self._arrived = anyio.Event()
            request.answer(error)

    def close(self) -> None:
        """Answers a request that is still pending at the end of the supervision."""
        if self._request is not None:
            operation = self._request.operation
            self.answer(IllegalState(operation=operation, state="being stopped", allowed="a running server"))
