"""Supervisions in this process: by `supervise()` on either event loop, and under a Daemon."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import replace
from pathlib import Path

import anyio
from anyio.from_thread import BlockingPortal

from supervisor import Daemon, Hooks, Profile, Supervised, SupervisorError, supervise
from support import until
from system.faults import Fault
from system.stages.scene import Scene


class Api(Scene):
    """`supervise()` in this process."""

    def __init__(self, fault: Fault, tmp: Path, portal: BlockingPortal) -> None:
        super().__init__(fault, tmp)
        self._portal = portal
        self._scope: anyio.CancelScope | None = None
        self._server: Supervised | None = None

    def started(self, value: Supervised | None = None) -> None:
        """The lifecycle calls this at READY."""
        self._server = value

    async def _main(self, profile: Profile, hooks: Hooks) -> None:
        try:
            with anyio.CancelScope() as self._scope:
                await supervise(profile, hooks, task_status=self)
        except SupervisorError as error:
            self.error, self.text = type(error).__name__, str(error)
            self.status = error.cli_status
        else:
            self.status = 0

    def begin(self) -> None:
        profile, hooks = self.fault.build(self.tmp)
        self._portal.start_task_soon(self._main, profile, replace(hooks, observers=(*hooks.observers, self.observe)))
        until(lambda: self._scope)

    def stop(self) -> None:
        assert self._scope
        self._portal.start_task_soon(self._scope.cancel)

    def seal(self) -> None:
        assert self._server
        self._portal.call(self._server.seal)

    def resume(self) -> None:
        assert self._server
        with contextlib.suppress(SupervisorError):
            self._portal.call(self._server.resume)


class InDaemon(Scene):
    """A Daemon in this process."""

    def begin(self) -> None:
        profile, hooks = self.fault.build(self.tmp)
        self._daemon = Daemon(profile, replace(hooks, observers=(*hooks.observers, self.observe)))
        threading.Thread(target=self._start, daemon=True).start()
        self.extras.callback(self._daemon.stop)

    def _start(self) -> None:
        with contextlib.suppress(SupervisorError):
            self._daemon.start()
        error = self._daemon._ended.exception()  # blocks until it is over
        if isinstance(error, SupervisorError):
            self.error, self.text, self.status = type(error).__name__, str(error), error.cli_status
        else:
            self.status = 0

    def stop(self) -> None:
        threading.Thread(target=self._daemon.stop).start()

    def seal(self) -> None:
        until(self._daemon._ready.done)
        self._daemon.seal()

    def resume(self) -> None:
        with contextlib.suppress(SupervisorError):
            self._daemon.resume()
