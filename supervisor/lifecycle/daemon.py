"""The same lifecycle for synchronous hosts: `Daemon` runs it on an event loop and thread of its own.

A host whose own loop is parked between lifecycle hooks (Modal runs each under its own `run_until_complete`) gives
background tasks no ticks; this thread keeps pumping logs and seeing exits.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from types import TracebackType
from typing import Final, Self

import anyio
from anyio.from_thread import BlockingPortal

from supervisor.errors import IllegalState
from supervisor.events import State
from supervisor.lifecycle.handle import Supervised
from supervisor.lifecycle.supervise import supervise
from supervisor.linux.exhaustion import detect, translated
from supervisor.profile import Profile
from supervisor.steps import Hooks
from supervisor.timing.racing import unwrapped

_FLUSH_S: Final = 2.5
_WORKER_S: Final = 1.0
_SIGNAL_S: Final = 0.25


class Daemon:
    """Supervises one server from synchronous code. Usable as a context manager; thread-safe.

    Args:
        profile: what to run. With `restart.host_exit_code` set, the host process ends with that code once the server
            has failed after READY and nothing more is tried: nobody waits on this thread. A failure that `seal` or
            `resume` raises is the caller's matter, and ends nothing.
        hooks: Steps and observers; they run on the daemon's thread.
    """

    def __init__(self, profile: Profile, hooks: Hooks = Hooks()) -> None:  # noqa: B008  frozen
        self._profile = profile
        self._hooks = hooks
        self._lock = threading.RLock()  # a signal handler may call `stop` while `start` holds it
        self._thread: threading.Thread | None = None
        self._portal: BlockingPortal | None = None
        self._scope: anyio.CancelScope | None = None
        self._ready: Future[Supervised] = Future()
        self._ended: Future[None] = Future()
        self._stopping = False
        self._waiting: list[str] = []
        self._raised: BaseException | None = None
        self._owner_pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Starts the server; blocks until READY.

        Raises:
            SupervisorError: it never became ready, or there is no thread to be had; nothing of it is left.
            IllegalState: the daemon was started or stopped before (make a new one), or is stopped meanwhile.

        An interrupt (KeyboardInterrupt, SystemExit from a signal handler) stops the half-started server first.
        """
        with self._lock:
            if self._stopping or self._thread is not None:
                raise IllegalState(operation="start", state="started or stopped before", allowed="a new Daemon")
            # A daemon thread: a host that forgets to stop exits all the same, and the guardian ends the server.
            thread = threading.Thread(target=self._run, name=f"supervise {self._profile.name}", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:
                if exhausted := detect(error):
                    raise exhausted from error
                raise
            self._thread = thread
        try:
            # In slices: a signal that comes just before the wait begins interrupts nothing, and its handler would have
            # to wait with us for READY.
            while not self._ready.done():
                wait((self._ready,), _SIGNAL_S)
            self._ready.result()
        except BaseException:
            self.stop()
            raise

    def seal(self) -> None:
        """Quiesces the server for a snapshot; `Supervised.seal` says what that means and raises."""
        self._call("seal", Supervised.seal)

    def resume(self) -> None:
        """Verifies after a snapshot and serves again; `Supervised.resume` says what that means and raises."""
        self._call("resume", Supervised.resume)

    def stop(self) -> None:
        """Stops the server and the thread; returns when no thread, child or descriptor is left. Idempotent.

        Bounded by the profile's `stop.grace_s` + `stop.drain_s` and 5 s, plus `before_stop` Steps. Call it from any
        thread but the daemon's own, also while `start` blocks elsewhere. After an interrupt, call it again. In a fork
        of the host it does nothing: the server belongs to the parent.

        Raises:
            IllegalState: called by a hook, on the daemon's own thread.
        """
        if threading.current_thread() is self._thread:
            raise IllegalState(operation="stop", state="running a hook", allowed="another thread")
        if os.getpid() != self._owner_pid:
            return
        self._stopping = True
        with self._lock:
            thread, portal = self._thread, self._portal
        if thread is None:
            return
        if portal is not None:
            with contextlib.suppress(RuntimeError):  # it ends by itself at this moment
                portal.start_task_soon(self._cancel)
        # Without the lock: a handler of a second signal may interrupt this wait on this very thread, and stop as well.
        thread.join()

    @property
    def state(self) -> State:
        """Where the lifecycle is; STARTING until the first READY."""
        ready = self._ready.done() and self._ready.exception() is None
        return self._ready.result().state if ready else State.STARTING

    @property
    def supervised(self) -> Supervised:
        """The running server: `url`, `pid`, `child`, `state`. Its coroutines belong to the daemon's loop.

        Raises:
            SupervisorError: it never became READY.
            IllegalState: it is not READY yet.
        """
        if not self._ready.done():
            raise IllegalState(operation="look at the server", state="starting", allowed="a `start` that returned")
        return self._ready.result()

    def started(self, value: Supervised | None = None) -> None:
        """The lifecycle calls this at the first READY (it is anyio's `TaskStatus`)."""
        assert value is not None
        self._ready.set_result(value)

    def _run(self) -> None:
        failure: BaseException | None = None
        try:
            failure = anyio.run(self._main)
        except BaseException as error:  # noqa: BLE001  it crosses to the waiting thread
            failure = error
        if isinstance(failure, Exception):
            failure = translated(unwrapped(failure))
        # anyio tells its worker threads to end and does not wait; a host that counts threads, as Modal does, sees them.
        for worker in threading.enumerate():
            if self._loop is not None and getattr(worker, "loop", None) is self._loop:
                worker.join(_WORKER_S)
        if failure is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(failure)
        if not self._ready.done():
            stopped = IllegalState(operation="start", state="being stopped", allowed="no stop meanwhile")
            self._ready.set_exception(failure or stopped)
            return
        code = self._profile.restart.host_exit_code
        unheard = failure is not None and not self._waiting and failure is not self._raised
        if unheard and not self._stopping and code is not None:
            self._exit_host(code)

    async def _main(self) -> Exception | None:
        """Supervises until stopped; returns why it failed, because the portal would raise that in a group."""
        self._loop = asyncio.get_running_loop()
        async with BlockingPortal() as self._portal:
            with anyio.CancelScope() as self._scope:
                if self._stopping:
                    return None
                try:
                    await supervise(self._profile, self._hooks, task_status=self)
                except Exception as error:  # noqa: BLE001  it crosses to the waiting thread
                    return error
        return None

    async def _cancel(self) -> None:
        if self._scope is not None:
            self._scope.cancel()

    def _call(self, operation: str, function: Callable[[Supervised], Awaitable[None]]) -> None:
        if threading.current_thread() is self._thread:
            raise IllegalState(operation=operation, state="running a hook", allowed="another thread")
        if self._portal is None:
            raise IllegalState(operation=operation, state="not running", allowed="a `start` that returned")
        # Whoever waits here gets the failure: the host must not be ended under its hands.
        self._waiting.append(operation)
        try:
            self._call_portal(self._portal, operation, function)
        except BaseException as error:
            self._raised = error
            raise
        finally:
            self._waiting.remove(operation)

    def _call_portal(
        self, portal: BlockingPortal, operation: str, function: Callable[[Supervised], Awaitable[None]]
    ) -> None:
        try:
            call = portal.start_task_soon(function, self.supervised)
        except RuntimeError:  # the portal is closed, or closes at this moment
            raise self._ending(operation) from None
        # A call that arrives in the loop's last moment is never run.
        wait((call, self._ended), return_when=FIRST_COMPLETED)
        if not call.done():
            raise self._ending(operation)
        try:
            call.result()
        except CancelledError:
            raise self._ending(operation) from None

    def _ending(self, operation: str) -> BaseException:
        """Why a call finds no running server: what the supervision ended with, else that it was stopped."""
        wait((self._ended,))
        stopped = IllegalState(operation=operation, state="not running", allowed="a running server")
        return self._ended.exception() or stopped

    def _exit_host(self, code: int) -> None:
        # Not sys.exit: this is not the main thread, which may be parked in foreign code for good. Flushing may block or
        # fail, so it gets a thread and a limit of its own.
        flusher = threading.Thread(target=self._flush, daemon=True)
        with contextlib.suppress(RuntimeError):  # out of threads: then the log ends where it is
            flusher.start()
            flusher.join(_FLUSH_S)
        os._exit(code)

    def _flush(self) -> None:
        flushes = [getattr(observer, "flush", None) for observer in self._hooks.observers]
        for flush in (*flushes, getattr(sys.stdout, "flush", None), getattr(sys.stderr, "flush", None)):
            if flush is not None:
                with contextlib.suppress(Exception):
                    flush()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
