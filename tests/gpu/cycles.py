"""A supervised server that leaves the GPU and comes back, again and again: seconds, GPU and host memory, answers.

`play` starts a server in one of its ways and takes it through cycles of seal, the driver's checkpoint and restore of
its processes, and resume. The processes simply stay in place of being saved: what is proved is the driver's part, the
engine's and ours. The golden answer has 24 tokens, and its replay is part of the resume: what the return took to the
first answer is restore, unlock and resume.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import anyio
import library
from driver import Checkpoint, used_mib
from journal import Journal
from prints import say, timed

from hooks.golden.generation import Generation
from hooks.golden.step import Golden, GoldenMismatch
from hooks.http.chat import chat
from hooks.sleep import GpuMemory
from hooks.warmup import Text
from supervisor import Daemon, Hooks
from supervisor.child import Child
from supervisor.engines import Engine

LAST: Final = 60  # lines of the server's log, shown when it fails
_SPEED_TOKENS: Final = 256
_STORY: Final = "Tell me a long story about rivers, ships and the people on them."


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way of leaving the GPU and coming back.

    Attributes:
        engine: the settings.
        checkpoint: whether the driver's checkpoint of the tree follows the sleep.
        offload: whether our library puts GPU memory aside.
        cycles: how many; None: as asked for.
    """

    engine: Engine
    checkpoint: bool = True
    offload: bool = False
    cycles: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Words(Golden):
    """A golden answer of exactly so many tokens."""

    max_tokens: int = 24

    async def _ask(self, child: Child, with_logprobs: bool) -> Generation:
        more = dict(child.profile.dialect.repeatable(self.seed)) | {"ignore_eos": True}
        if with_logprobs:
            more |= {"logprobs": True, "top_logprobs": 1}
        return Generation.read(await chat(child, self.prompt, self.max_tokens, self.deadline_s, **more))


def gpu_pids() -> list[int]:
    """The processes with memory on the GPU."""
    out = subprocess.run(
        ["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader"], capture_output=True, text=True, check=True
    )
    return sorted({int(line) for line in out.stdout.split()})


class Server:
    """A daemon of a way; `proved` by its golden answer at every seal and resume. `with` starts and stops it."""

    def __init__(self, way: Way, built: Path | None, *, proved: bool = True) -> None:
        self.way, self.journal = way, Journal()
        golden, self.recorded = Words(), Words(tolerance=0.0)
        hooks = way.engine.hooks() + Hooks(
            warmup=(Text(),) if way.engine.dialect.chat_path else (),
            before_seal=(golden.record,) if proved else (),
            after_resume=(golden.replay,) if proved else (),
            observers=(self.journal,),
        )
        profile = way.engine.profile()
        if way.offload:
            proof = (golden.replay,) if proved else ()
            memory = GpuMemory(proof=proof, library=built, for_snapshot=way.checkpoint)
            profile, hooks = memory.profile(profile), hooks + memory.hooks()
        self.daemon = Daemon(profile, hooks)

    @property
    def pid(self) -> int:
        """The child's."""
        pid = self.daemon.supervised.pid
        assert pid
        return pid

    def __enter__(self) -> Self:
        self.daemon.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.daemon.stop()

    def record(self) -> None:
        """Ask the golden question, for what `same` compares with."""
        anyio.run(self.recorded.record.__call__, self.daemon.supervised.child)

    def same(self) -> bool | str:
        """Ask again: True, or where the answer parts from the recorded one."""
        try:
            anyio.run(self.recorded.replay.__call__, self.daemon.supervised.child)
        except GoldenMismatch as mismatch:
            return str(mismatch)
        return True

    def first_token(self) -> float:
        """Seconds that an answer of one token takes."""
        child = self.daemon.supervised.child
        return timed(lambda: anyio.run(lambda: chat(child, _STORY, 1, None)))

    def speed(self, times: int) -> list[float]:
        """Tokens a second of one request, so many times."""
        child, found = self.daemon.supervised.child, []
        for _ in range(times):
            began = time.monotonic()
            answer = anyio.run(lambda: chat(child, _STORY, _SPEED_TOKENS, None, ignore_eos=True))
            took_s = time.monotonic() - began
            found.append(round(answer.data()["usage"]["completion_tokens"] / took_s, 2))
        return found

    def tail(self) -> str:
        """The end of the server's log."""
        return "\n".join(self.journal.lines[-LAST:])


class Cycle:
    """One seal and resume, in seconds."""

    def __init__(self, server: Server) -> None:
        self.row: dict[str, Any] = {"gpu_mib_before": used_mib()}
        self._pids = gpu_pids()
        daemon, pid = server.daemon, server.pid
        self.row["rss_mib_before"] = self._rss_mib()
        server.journal.steps.clear()
        self._time("seal_s", daemon.seal)
        self.row["gpu_mib_sealed"] = used_mib()
        if server.way.offload:
            self.row["kept"] = library.kept(pid)
        if server.way.checkpoint:
            self._checkpoint()
        self.row["rss_mib_between"] = self._rss_mib()
        if server.way.checkpoint:
            self._restore()
        self._time("resume_s", daemon.resume)
        self._time("answer_s", lambda: self.row.update(to_the_last_bit=server.same()))
        self.row |= {"gpu_mib_after": used_mib(), "same_child": pid == daemon.supervised.pid}
        self.row["steps"] = dict(server.journal.steps)

    def _checkpoint(self) -> None:
        self._checkpoints = [Checkpoint(pid) for pid in self._pids]
        self.row["processes_with_gpu_memory"] = len(self._checkpoints)
        self._time("lock_s", lambda: self._every(Checkpoint.lock))
        self._time("checkpoint_s", lambda: self._every(Checkpoint.checkpoint))
        self.row["gpu_mib_between"] = used_mib()

    def _restore(self) -> None:
        self._time("restore_s", lambda: self._every(Checkpoint.restore))
        self._time("unlock_s", lambda: self._every(Checkpoint.unlock))

    def _every(self, call: Callable[[Checkpoint], None]) -> None:
        for checkpoint in self._checkpoints:
            call(checkpoint)

    def _rss_mib(self) -> int:
        """Host memory of its own, of the processes with GPU memory."""
        found = 0
        for pid in self._pids:
            status = Path(f"/proc/{pid}/status").read_text()
            found += sum(int(kb) for kb in re.findall(r"RssAnon:\s+(\d+) kB", status)) // 1024
        return found

    def _time(self, name: str, what: Callable[[], object]) -> None:
        self.row[name] = timed(what)


def play(
    name: str,
    way: Way,
    *,
    cycles: int,
    built: Path | None = None,
    speeds: int = 0,
    put: Callable[[str, Any], None] | None = None,
    after: Callable[[Server], object] | None = None,
) -> dict[str, Any]:
    """One cold start and its cycles, and what comes `after`; what was seen, or the error with the end of the log.

    `put` stores it under the way's name, from the first cycle on.
    """
    say(f"== {name}")
    result: dict[str, Any] = {"gpu_mib_before": used_mib()}
    put = put or (lambda *_: None)
    put(name, result)
    server = Server(way, built)
    try:
        result["start_s"] = timed(server.daemon.start)
        result |= {"steps": dict(server.journal.steps), "gpu_mib": used_mib(), "cycles": []}
        say(f"cold start: {result}")
        if speeds:
            result["tokens_per_s"] = server.speed(speeds)
            say(f"tokens a second: {result['tokens_per_s']}")
        server.record()
        for _ in range(cycles if way.cycles is None else way.cycles):
            result["cycles"].append(Cycle(server).row)
            put(name, result)
            say(f"cycle: {result['cycles'][-1]}")
        if after:
            after(server)
    except Exception as error:  # noqa: BLE001  reported
        result["error"] = f"{type(error).__name__}: {error}"
        say("\n".join([server.tail(), result["error"]]))
    finally:
        with suppress(Exception):
            result["stop_s"] = timed(server.daemon.stop)
        result |= {"gpu_mib_stopped": used_mib(), "left": gpu_pids()}
        result["notices"] = [line for line in server.journal.told if line.startswith("supervision.notice")]
        put(name, result)
    return result
