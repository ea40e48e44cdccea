"""A fake of the library's side of its sockets: one listener a process, which misbehaves on demand."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import SocketStream, TaskStatus

from support import until_async

GIB = 1 << 30


def device(number: int = 0, size: int = 4 * GIB, **fields: Any) -> dict[str, Any]:
    """One GPU as `status` shows it; by default all that is used was caught."""
    used = {"used_bytes": size + GIB, "total_bytes": 80 * GIB, "process_bytes": size + GIB, "before_bytes": GIB}
    return {"device": number, "bytes": size, **used, **fields}


@dataclass(kw_only=True)
class FakeLibrary:
    """What one process answers.

    Attributes:
        folder, pid: name its socket.
        devices: for `status`; the sum of their bytes is what was caught.
        answers: operation -> what it answers instead: an object with `ok`, or with fields to replace; raw bytes;
            None: it ends the connection without a word.
        begun, go_on: operation -> set when such a request came; waited for before it is answered.
        asked: every request, in order.
    """

    folder: Path
    pid: int = 7
    devices: list[dict[str, Any]] = field(default_factory=lambda: [device()])
    answers: dict[str, Any] = field(default_factory=dict)
    begun: dict[str, anyio.Event] = field(default_factory=dict)
    go_on: dict[str, anyio.Event] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)
    state: str = "awake"
    busy: int = 0

    @property
    def address(self) -> Path:
        """Where it listens."""
        return self.folder / f"{self.pid}.sock"

    @property
    def operations(self) -> list[str]:
        """What it was asked for, without `status`."""
        return [request["op"] for request in self.asked if request["op"] != "status"]

    @property
    def bytes(self) -> int:
        """What it caught."""
        return sum(each["bytes"] for each in self.devices)

    async def serve(self, stream: SocketStream) -> None:
        """Answer one connection."""
        self.busy += 1
        try:
            async with stream:
                await self._answer(stream)
        finally:
            self.busy -= 1

    async def _answer(self, stream: SocketStream) -> None:
        request = json.loads(await stream.receive())
        self.asked.append(request)
        operation = request["op"]
        if operation in self.begun:
            self.begun[operation].set()
        if operation in self.go_on:
            await self.go_on[operation].wait()
        answer = self.answers.get(operation, {})
        if answer is None:
            return
        if not isinstance(answer, bytes):
            answer = json.dumps(answer if "ok" in answer else self.answer(operation) | answer).encode() + b"\n"
        with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):  # who asked may be gone
            await stream.send(answer)

    def answer(self, operation: str) -> dict[str, Any]:
        """What a library without faults says."""
        counts = {"allocations": 3, "bytes": self.bytes, "stored_bytes": self.bytes // 2, "zero_bytes": self.bytes // 2}
        if operation == "status":
            more = {"version": 1, "pid": self.pid, "state": self.state, "ipc_refused": 0, "devices": self.devices}
            return {"ok": True, **counts, **more}
        goal = "asleep" if operation == "offload" else "awake"
        already, self.state = self.state == goal, goal
        seconds = {"copy": 0.25, "total": 0.5}
        return {"ok": True, "state": goal, "already": already, **counts, "seconds": seconds, "gb_per_s": 8.0}


@asynccontextmanager
async def listening(*libraries: FakeLibrary) -> AsyncIterator[None]:
    """The libraries listen, each at its own address."""
    failure: BaseException | None = None
    async with anyio.create_task_group() as tasks:
        for library in libraries:
            await tasks.start(_listen, library)
        try:
            yield
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:  # noqa: BLE001  a test's failure is shown as it is, not as a part of a group
            failure = error
        # asyncio does not like a send that is cancelled at the moment in which it fails.
        for event in (event for library in libraries for event in library.go_on.values()):
            event.set()
        await until_async(lambda: not any(library.busy for library in libraries))
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _listen(library: FakeLibrary, *, task_status: TaskStatus[None]) -> None:
    async with await anyio.create_unix_listener(library.address) as listener:
        task_status.started()
        await listener.serve(library.serve)
