"""Supervised servers as a soak sees them: begun, sealed, resumed, ended."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Protocol

import anyio
from anyio.from_thread import BlockingPortal

from supervisor import Daemon, Hooks, Profile, Supervised, supervise

EPISODE_LIMIT_S = 60.0


class Supervision(Protocol):
    """One supervised server, through `supervise()` or a Daemon."""

    def begin(self, profile: Profile, hooks: Hooks) -> None:
        """Starts it; does not wait."""

    def seal(self) -> None:
        """Seals it."""

    def resume(self) -> None:
        """Resumes it."""

    def end(self) -> BaseException | None:
        """Stops it, waits for the end, and returns what it raised."""


class OnLoop:
    """`supervise()` on an event loop that others share."""

    def __init__(self, portal: BlockingPortal) -> None:
        self._portal = portal
        self._scope: Future[anyio.CancelScope] = Future()
        self._server: Supervised | None = None

    def started(self, value: Supervised | None = None) -> None:
        """The lifecycle calls this at READY."""
        self._server = value

    async def _main(self, profile: Profile, hooks: Hooks) -> None:
        with anyio.CancelScope() as scope:
            self._scope.set_result(scope)
            await supervise(profile, hooks, task_status=self)

    def begin(self, profile: Profile, hooks: Hooks) -> None:
        self._future: Future[None] = self._portal.start_task_soon(self._main, profile, hooks)

    def seal(self) -> None:
        if self._server:
            self._portal.call(self._server.seal)

    def resume(self) -> None:
        if self._server:
            self._portal.call(self._server.resume)

    def end(self) -> BaseException | None:
        self._portal.start_task_soon(self._scope.result(EPISODE_LIMIT_S).cancel)
        return self._future.exception(EPISODE_LIMIT_S)


class OnThread:
    """A Daemon."""

    def begin(self, profile: Profile, hooks: Hooks) -> None:
        self._daemon = Daemon(profile, hooks)
        self._thread = threading.Thread(target=self._start)
        self._error: BaseException | None = None
        self._thread.start()

    def _start(self) -> None:
        try:
            self._daemon.start()
        except BaseException as error:  # noqa: BLE001  judged by `end`
            self._error = error

    def seal(self) -> None:
        self._daemon.seal()

    def resume(self) -> None:
        self._daemon.resume()

    def end(self) -> BaseException | None:
        self._daemon.stop()
        self._thread.join(EPISODE_LIMIT_S)
        if self._thread.is_alive():
            return TimeoutError("start did not return")
        return self._error
