"""Who is served when: the load, one request at a time, a bounded queue, and the end."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from functools import partial
from typing import Final

from .metrics import Metrics
from .options import Options
from .order import Order, Refusal
from .pipeline import Abandoned, Broken, OutOfMemory, Pipeline, is_out_of_memory
from .worker import Worker

__all__ = ["Desk"]

_LOADING_RETRY_S: Final = 5
_LONGEST_RETRY_S: Final = 60
_LAST_STEP_S: Final = 1.0  # for the step that runs when the grace is over
_STEP_LINE_S: Final = 2.0  # a line a step would drown the log of a quick pipeline

log = logging.getLogger("images")


class Desk:
    """Takes orders once the pipeline is loaded. Its methods run in the event loop.

    Attributes:
        stage: of the load; `ready` after it, `stopping` after SIGTERM, `broken` when the device was lost.
        metrics: what was done so far.
        ended: set when the server must end: `failed` says whether by itself.
        failed: the load failed, or the device was lost.
    """

    def __init__(self, options: Options) -> None:
        self.stage = "start"
        self.metrics = Metrics()
        self.ended = asyncio.Event()
        self.failed = False
        self._options = options
        self._worker = Worker()
        self._pipeline = Pipeline(options)
        self._began = self._stage_began = time.monotonic()
        self._busy = False
        self._line: deque[asyncio.Future[None]] = deque()
        self._gone: threading.Event | None = None
        self._drawing: asyncio.Future[list[bytes]] | None = None
        self._free = asyncio.Event()
        self._free.set()
        self._orders = 0

    @property
    def running(self) -> int:
        """Orders that are being drawn."""
        return int(self._busy)

    @property
    def waiting(self) -> int:
        """Orders that wait for their turn."""
        return len(self._line)

    @property
    def state(self) -> dict[str, object]:
        """What `/health` tells beside its status."""
        since = round(time.monotonic() - self._stage_began, 1)
        return {"stage": self.stage, "stage_s": since, "running": self.running, "waiting": self.waiting}

    def unavailable(self) -> Refusal | None:
        """Why nothing can be drawn now; None when it can."""
        if self.stage == "ready":
            return None
        if self.stage in ("stopping", "broken"):
            return Refusal(503, f"the server is {self.stage}", code=self.stage, retry_after_s=_LOADING_RETRY_S)
        text = f"the pipeline is loading: {self.stage}"
        return Refusal(503, text, code="loading", retry_after_s=_LOADING_RETRY_S)

    async def load(self, where: str) -> None:
        """Load the pipeline. A failure ends the server with words on the log.

        Args:
            where: the address that is served, for the log.
        """
        loop = asyncio.get_running_loop()

        def enter(stage: str) -> None:
            loop.call_soon_threadsafe(self._enter, stage)

        try:
            await self._worker.submit(partial(self._pipeline.load, enter))
        except Exception as error:
            log.info("loading: where it failed", exc_info=error)
            memory = " (out of memory)" if is_out_of_memory(error) else ""
            log.error("the load failed at %s%s: %s: %s", self.stage, memory, type(error).__name__, error)  # noqa: TRY400
            self._end(failed=True)
            return
        if self.stage == "stopping":
            return
        self.metrics.load_s = time.monotonic() - self._began
        self._enter("ready")
        what = f"{self._options.pipeline}, {self._options.dtype} on {self._pipeline.device}"
        log.info("ready: serving %s (%s) on %s", self._options.name, what, where)

    async def draw(self, order: Order) -> list[bytes]:
        """Draw the images of an order when its turn comes. Cancelled, it leaves its place, or ends after a step.

        Raises:
            Refusal: it is not served: 422, 500, 503.
        """
        self._admit()
        await self._turn()
        self._gone = gone = threading.Event()
        self._orders += 1
        self._drawing = future = self._worker.submit(partial(self._job, self._orders, order, gone))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            gone.set()
            await asyncio.wait([future])  # the thread draws on until its step is done, and nobody else may have it
            future.exception()
            log.info("image %d: given up, because nobody waits for it", self._orders)
            raise
        except Abandoned:
            raise Refusal(503, "the server is stopping", code="stopping") from None
        except OutOfMemory as error:
            log.error("image %d: %s", self._orders, error)  # noqa: TRY400
            raise Refusal(500, f"out of memory: {error}", code="out_of_memory") from error
        except Broken as error:
            log.error("the device is lost, so the server ends: %s", error)  # noqa: TRY400
            self._end(failed=True)
            raise Refusal(500, "the device is lost, and the server ends", code="broken") from error
        except Refusal:
            raise
        except Exception as error:
            log.exception("image %d failed", self._orders)
            raise Refusal(500, f"the pipeline failed: {type(error).__name__}: {error}", code="failed") from error
        finally:
            self._gone = self._drawing = None
            self._next()

    async def stop(self, grace_s: float) -> None:
        """Refuse whoever waits, let the running order finish within the grace, then have the server end."""
        if self.stage == "broken":
            return
        log.info("stopping: %d running, %d waiting", self.running, self.waiting)
        self._enter("stopping")
        while self._line:
            place = self._line.popleft()
            if not place.done():
                place.set_exception(Refusal(503, "the server is stopping", code="stopping"))
        free = asyncio.ensure_future(self._free.wait())
        if not (await asyncio.wait([free], timeout=grace_s))[0]:
            log.warning("stopping: the running image is given up after %g s", grace_s)
            if self._gone:
                self._gone.set()
            await asyncio.wait([free], timeout=_LAST_STEP_S)
            if self._drawing and not self._drawing.done():
                self._drawing.set_exception(Abandoned())  # the thread hangs, and the client waits
        self._end(failed=False)

    def _enter(self, stage: str) -> None:
        if self.stage in ("stopping", "broken"):
            return
        now = time.monotonic()
        if self.stage not in ("start", "ready") and stage != "broken":
            log.info("loading: %s took %.1f s", self.stage, now - self._stage_began)
        if stage == "weights":
            log.info("loading: weights of %s from %s", self._options.pipeline, self._options.model)
        elif stage not in ("ready", "stopping", "broken"):
            log.info("loading: %s", stage)
        self.stage, self._stage_began = stage, now

    def _end(self, *, failed: bool) -> None:
        self.failed = failed
        self._enter("broken" if failed else "stopping")
        self.ended.set()

    def _admit(self) -> None:
        if refusal := self.unavailable():
            raise refusal
        if self._busy and len(self._line) >= self._options.max_queue:
            each_s = self.metrics.drawing_s / self.metrics.images if self.metrics.images else 1.0
            retry_s = min(_LONGEST_RETRY_S, max(1, math.ceil(each_s * (1 + len(self._line)))))
            text = f"{len(self._line)} requests wait already, and no more may"
            raise Refusal(503, text, code="queue_full", retry_after_s=retry_s)

    async def _turn(self) -> None:
        """Wait in the line; returns when this order may be drawn."""
        if self._busy:
            place = asyncio.get_running_loop().create_future()
            self._line.append(place)
            try:
                await place
            except asyncio.CancelledError:
                if place in self._line:
                    self._line.remove(place)
                elif not place.cancelled() and place.exception() is None:
                    self._next()  # called and cancelled at the same moment: the turn goes on to the next one
                raise
        self._busy = True
        self._free.clear()

    def _next(self) -> None:
        while self._line:
            place = self._line.popleft()
            if not place.done():
                place.set_result(None)
                return
        self._busy = False
        self._free.set()

    def _job(self, number: int, order: Order, gone: threading.Event) -> list[bytes]:
        """Draw an order; runs in the worker's thread."""
        out: list[bytes] = []
        width, height = order.size
        spoken = time.monotonic()

        def on_step(step: int) -> None:
            nonlocal spoken
            self.metrics.steps += 1
            if time.monotonic() - spoken >= _STEP_LINE_S:
                spoken = time.monotonic()
                log.info("image %d: step %d%s", number, step, f" of {order.steps}" if order.steps else "")

        try:
            for index in range(order.count):
                began = time.monotonic()
                out.append(self._pipeline.draw(order, index, gone, on_step))
                took_s = time.monotonic() - began
                self.metrics.images += 1
                self.metrics.drawing_s += took_s
                log.info("image %d: %dx%d, seed %d, %.2f s", number, width, height, order.seed + index, took_s)
        except OutOfMemory:
            self._pipeline.free()
            raise
        return out
