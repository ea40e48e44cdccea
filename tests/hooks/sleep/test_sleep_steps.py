"""The Steps that move GPU memory, against processes that answer as the library does, or worse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from fakes.gpu_library import GIB, FakeLibrary, device, listening
from hooks.sleep import Offload, Reload
from hooks.sleep.accounting import TOLERANCE_BYTES
from hooks.sleep.folder import VARIABLE
from hooks.sleep.moving import look, offload_all, reload_all
from hooks.sleep.offload import errors
from hooks.sleep.steps import Memory, ProofFailed, SelfCheck, SeveralGpus, StaysThere
from supervisor import Child, Profile, Redactor, Step, events, step
from supervisor.errors import StillAsleep
from support import Recorder

pytestmark = pytest.mark.anyio

NOT_IDLE = {"ok": False, "error": "not_idle", "detail": "30 s"}
NO_ROOM = {"ok": False, "error": "out_of_host_memory", "wanted_bytes": 5 * GIB}
FULL = {"ok": False, "error": "out_of_gpu_memory", "device": 0, "wanted_bytes": 5 * GIB, "free_bytes": GIB}
REFUSED = {"ok": False, "error": "cuda", "call": "cuMemMap", "code": 999, "name": "CUDA_ERROR_UNKNOWN"}
OFF = {"ok": False, "error": "off", "detail": "no room for chunks"}
CHUNK = {"device": 0, "address": "0x7f0000", "bytes": 4096}
WRONG = {"ok": False, "error": "checksum", "damaged_chunks": 1, "damaged": [CHUNK]}


@dataclass(kw_only=True)
class Server:
    """A child whose processes are fakes, the Steps that share what they know of it, and what they told."""

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    proof: tuple[Step, ...] = ()
    seen: Recorder = field(default_factory=Recorder)
    memory: Memory = field(default_factory=Memory)
    env: bool = True

    @property
    def child(self) -> Child:
        """Always of the same life."""
        env = {VARIABLE: str(self.folder)} if self.env else {}
        profile = Profile(name="x", command=("x",), port=1, env=env)
        return Child(profile=profile, port=1, pid=5, cookie="c", redact=Redactor(()), tell=self.seen)

    async def check(self) -> None:
        """The self-check."""
        await SelfCheck(**self.settings, memory=self.memory, proof=self.proof)(self.child)

    async def offload(self) -> None:
        """To sleep."""
        await Offload(**self.settings, memory=self.memory)(self.child)

    async def reload(self) -> None:
        """Awake."""
        await Reload(**self.settings, memory=self.memory)(self.child)

    @property
    def notice(self) -> str:
        """The only notice."""
        return self.seen.one(events.Notice).detail


async def test_memory_goes_and_comes_back_in_every_process(tmp_path: Path) -> None:
    """All processes are asked, with the settings; an event tells the numbers each way; stale sockets do not matter."""
    one, two = FakeLibrary(folder=tmp_path, pid=10), FakeLibrary(folder=tmp_path, pid=9)
    old = FakeLibrary(folder=tmp_path, pid=3)
    server = Server(folder=tmp_path, settings={"threads": 2, "verify": False, "idle_s": 4.0})
    async with listening(old):
        pass
    (tmp_path / "note.sock").touch()
    async with listening(one, two):
        await server.offload()
        went = server.seen.one(events.GpuMemoryOffloaded)
        assert (went.pids, went.bytes, went.stored_bytes, went.gb_per_s) == ((9, 10), 8 * GIB, 4 * GIB, 16.0)
        assert one.asked[-1] == {"op": "offload", "threads": 2, "verify": False, "idle_s": 4.0}
        await server.reload()
        came = server.seen.one(events.GpuMemoryReloaded)
        assert (came.pids, came.bytes) == ((9, 10), 8 * GIB)
        await server.reload()
    assert server.seen.names == ["gpu.offloaded", "gpu.reloaded"]  # the second reload had nothing to do
    assert [library.operations for library in (one, two)] == [["offload", "reload", "reload"]] * 2


async def test_a_server_that_sleeps_on_holds_no_gpu(tmp_path: Path) -> None:
    """Where one process finds no room, what came back in the other one goes again; the next wake brings both."""
    full = {"ok": False, "error": "out_of_gpu_memory", "device": 1, "wanted_bytes": 2, "free_bytes": 1}
    fits, waits = FakeLibrary(folder=tmp_path, pid=1), FakeLibrary(folder=tmp_path, pid=2, answers={"reload": full})
    server = Server(folder=tmp_path, settings={"for_snapshot": False})
    async with listening(fits, waits):
        await server.offload()
        with pytest.raises(StillAsleep, match="GPU 1"):
            await server.reload()
        assert (fits.state, waits.state) == ("asleep", "asleep")
        assert fits.operations == ["offload", "reload", "offload"]
        waits.answers.clear()
        await server.reload()
    assert (fits.state, waits.state) == ("awake", "awake")
    assert server.seen.names == ["gpu.offloaded", "gpu.reloaded"]


async def test_processes_are_asked_at_once(tmp_path: Path) -> None:
    """Each waits until the other has begun: only together can they be done."""
    begun = {"offload": anyio.Event()}, {"offload": anyio.Event()}
    one = FakeLibrary(folder=tmp_path, pid=1, begun=begun[0], go_on=begun[1])
    two = FakeLibrary(folder=tmp_path, pid=2, begun=begun[1], go_on=begun[0])
    async with listening(one, two):
        with anyio.fail_after(20):
            assert (await offload_all(tmp_path, (1, 2), threads=8, verify=True, idle_s=1)).pids == (1, 2)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [(NOT_IDLE, errors.NotIdle), (None, errors.Unreachable), (b"{\n", errors.Unreadable)],
    ids=["not-idle", "gone", "unreadable"],
)
async def test_one_that_fails_undoes_the_others(tmp_path: Path, answer: Any, kind: type[Exception]) -> None:
    """Memory is away everywhere or nowhere; who broke off is brought back too, because nobody knows how far it came."""
    good, bad = FakeLibrary(folder=tmp_path, pid=1), FakeLibrary(folder=tmp_path, pid=2, answers={"offload": answer})
    server = Server(folder=tmp_path)
    async with listening(good, bad):
        with pytest.raises(kind):
            await server.offload()
    assert good.operations == bad.operations == ["offload", "reload"]
    assert good.state == "awake"
    assert server.seen.names == []


async def test_an_undo_that_fails_is_what_counts(tmp_path: Path) -> None:
    """Then the error is the worse one, which tells that a process has not its memory back; the others are notes."""
    stuck = FakeLibrary(folder=tmp_path, pid=1, answers={"reload": WRONG})
    full = FakeLibrary(folder=tmp_path, pid=3, answers={"reload": FULL})
    bad = FakeLibrary(folder=tmp_path, pid=2, answers={"offload": NO_ROOM})
    server = Server(folder=tmp_path)
    async with listening(full, stuck, bad):
        with pytest.raises(errors.Damaged, match="4096 bytes at 0x7f0000 of GPU 0") as caught:
            await server.offload()
    assert ["GPU 0 has 1.1 GB free" in note for note in caught.value.__notes__] == [True]


@pytest.mark.parametrize("answer", [NO_ROOM, REFUSED, OFF], ids=["host-memory", "driver", "off"])
@pytest.mark.parametrize("act", [Server.offload, Server.check], ids=["offload", "check"])
async def test_what_cannot_be_moved_is_left_to_the_platform(tmp_path: Path, answer: Any, act: Any) -> None:
    """Before a snapshot nothing is lost by that: a notice says why, once, and the seal goes on."""
    library = FakeLibrary(folder=tmp_path, answers={"offload": answer})
    server = Server(folder=tmp_path)
    async with listening(library):
        await act(server)
        await server.offload()
        await server.reload()
    assert server.notice.startswith("GPU memory is left to the platform: process 7 could not put its GPU memory aside")
    assert library.operations == ["offload", "reload", "reload"]


async def test_what_could_not_be_undone_is_not_left_to_the_platform(tmp_path: Path) -> None:
    """A server without its memory is none to snapshot: the Step fails, and the wake has to bring it back."""
    stuck = FakeLibrary(folder=tmp_path, pid=1, answers={"reload": REFUSED})
    bad = FakeLibrary(folder=tmp_path, pid=2, answers={"offload": NO_ROOM})
    server = Server(folder=tmp_path)
    async with listening(stuck, bad):
        with pytest.raises(errors.CudaFailed, match="process 1 could not bring its GPU memory back"):
            await server.offload()
    assert server.seen.names == []


async def test_on_a_host_the_same_is_an_error(tmp_path: Path) -> None:
    """There no platform follows that would move it: who asked for sleep hears why there is none."""
    library = FakeLibrary(folder=tmp_path, answers={"offload": NO_ROOM})
    server = Server(folder=tmp_path, settings={"for_snapshot": False})
    async with listening(library):
        with pytest.raises(errors.OutOfHostMemory):
            await server.offload()
    assert server.seen.names == []


async def test_an_engine_that_works_is_not_sealed(tmp_path: Path) -> None:
    """A GPU that does not become idle refuses the seal, before a snapshot too: the driver's way would not do."""
    library = FakeLibrary(folder=tmp_path, answers={"offload": NOT_IDLE})
    server = Server(folder=tmp_path)
    async with listening(library):
        with pytest.raises(errors.NotIdle, match="Stop requests first"):
            await server.check()
    assert server.memory.broken is None


NOTHING: list[tuple[Callable[[Path], list[FakeLibrary]], str]] = [
    (lambda _: [], "the library caught nothing. A server that uses no GPU"),
    (lambda folder: [FakeLibrary(folder=folder, devices=[])], "the library caught nothing"),
    (
        lambda folder: [
            FakeLibrary(folder=folder, devices=[], answers={"status": {"state": "off", "reason": "no VMM here"}})
        ],
        "the library is off (no VMM here)",
    ),
]


@pytest.mark.parametrize(("made", "words"), NOTHING, ids=["no-socket", "no-memory", "off"])
async def test_a_server_of_which_nothing_was_caught(
    tmp_path: Path, made: Callable[[Path], list[FakeLibrary]], words: str
) -> None:
    """A notice names what may be the cause and the remedy, once; on a host it is an error."""
    server, host = Server(folder=tmp_path), Server(folder=tmp_path, settings={"for_snapshot": False})
    async with listening(*made(tmp_path)):
        await server.check()
        await server.offload()
        with pytest.raises(StaysThere, match="linked statically"):
            await host.offload()
    assert words in server.notice and "PYTORCH_CUDA_ALLOC_CONF" in server.notice


async def test_a_profile_without_the_library(tmp_path: Path) -> None:
    """The Steps do nothing where nothing was preloaded; a notice says so, and a wake needs no folder."""
    server = Server(folder=tmp_path, env=False)
    await server.check()
    await server.offload()
    await server.reload()
    assert "supervise gpu-memory build" in server.notice


async def test_ranks_on_several_gpus_get_no_snapshot(tmp_path: Path) -> None:
    """The driver's restore of such processes fails, so that the seal is refused; on their host they sleep."""
    one = FakeLibrary(folder=tmp_path, pid=1, devices=[device(0)])
    two = FakeLibrary(folder=tmp_path, pid=2, devices=[device(1)])
    front = FakeLibrary(folder=tmp_path, pid=3, devices=[])
    async with listening(one, two, front):
        with pytest.raises(SeveralGpus, match="processes 1, 2 hold memory of different GPUs"):
            await Server(folder=tmp_path).check()
        host = Server(folder=tmp_path, settings={"for_snapshot": False})
        await host.check()
        await host.offload()
    assert [library.operations for library in (one, two, front)] == [["offload", "reload", "offload"]] * 2 + [
        ["reload"]
    ]


async def test_several_processes_on_one_gpu_are_fine(tmp_path: Path) -> None:
    """They can be snapshotted, as a router's models are."""
    server = Server(folder=tmp_path)
    async with listening(FakeLibrary(folder=tmp_path, pid=1), FakeLibrary(folder=tmp_path, pid=2)):
        await server.offload()
    assert server.seen.one(events.GpuMemoryOffloaded).pids == (1, 2)


ESCAPED = device(process_bytes=5 * GIB + TOLERANCE_BYTES, used_bytes=7 * GIB)


async def test_memory_that_escaped_is_a_notice_with_the_number(tmp_path: Path) -> None:
    """Before a snapshot everything is left to the platform then; on a host what was caught goes all the same."""
    library = FakeLibrary(folder=tmp_path, devices=[ESCAPED])
    server, host = Server(folder=tmp_path), Server(folder=tmp_path, settings={"for_snapshot": False})
    async with listening(library):
        await server.check()
        await server.offload()
        assert library.operations == []
        await host.check()
        await host.offload()
    assert library.operations == ["offload", "reload", "offload"]
    words = "process 7 holds 3.2 GB on GPU 0 that the library did not catch, beside 4.3 GB that it caught"
    assert words in server.notice and "expandable_segments" in server.notice
    assert host.notice.startswith("GPU memory that stays on the GPU: ") and words in host.notice


async def test_ipc_that_was_refused_is_told(tmp_path: Path) -> None:
    """The server may lack what it wanted to share: a notice says how often, and the memory goes all the same."""
    library = FakeLibrary(folder=tmp_path, answers={"status": {"ipc_refused": 3}})
    server = Server(folder=tmp_path)
    async with listening(library):
        await server.check()
        await server.offload()
    assert "refused to the server 3 times" in server.notice
    assert library.state == "asleep"


# ------------------------------------------------------------------------------------------------ the proof


def proof_of(outcomes: list[Exception | None]) -> Step:
    """A proof with these outcomes, one a call."""

    async def prove(_: Child) -> None:
        outcome = outcomes.pop(0)
        if outcome is not None:
            raise outcome

    return step("the answer", prove)


async def test_the_self_check_is_made_once_a_life(tmp_path: Path) -> None:
    """Memory goes and comes back in place, the proof passes before and after; the next seal of this life trusts it."""
    library = FakeLibrary(folder=tmp_path)
    outcomes: list[Exception | None] = [None, None]
    server = Server(folder=tmp_path, proof=(proof_of(outcomes),))
    async with listening(library):
        await server.check()
        await server.check()
        assert (outcomes, library.operations, server.seen.names) == ([], ["offload", "reload"], [])
        server.memory.of(replace(server.child, cookie="another"))
        outcomes += [None, None]
        await server.check()
    assert outcomes == []


async def test_a_proof_that_fails_beforehand_says_nothing_about_the_memory(tmp_path: Path) -> None:
    """The seal is refused with its own words, and nothing was moved."""
    library = FakeLibrary(folder=tmp_path)
    server = Server(folder=tmp_path, proof=(proof_of([ValueError("nothing was recorded")]),))
    async with listening(library):
        with pytest.raises(ValueError, match="nothing was recorded"):
            await server.check()
        await server.reload()
    assert library.operations == ["reload"]


async def test_a_child_that_fails_the_proof_does_not_serve_on(tmp_path: Path) -> None:
    """Its memory came back and its answer did not: the wake refuses it too; later lives are left to the platform."""
    library = FakeLibrary(folder=tmp_path)
    server = Server(folder=tmp_path, proof=(proof_of([None, ValueError("Lyon.")]),))
    async with listening(library):
        with pytest.raises(ProofFailed, match="'the answer' fails: Lyon"):
            await server.check()
        with pytest.raises(ProofFailed):
            await server.reload()
        server.memory.of(replace(server.child, cookie="another"))
        server.memory.life = (server.child.cookie, server.child.pid)
        await server.check()
        await server.offload()
    assert library.operations == ["offload", "reload"]
    assert "an earlier life showed that" in server.notice and 'gpu_memory="driver"' in server.notice


# ------------------------------------------------------------------------------------------------ the way back


async def test_damage_is_found_at_the_reload(tmp_path: Path) -> None:
    """The error has the addresses."""
    library = FakeLibrary(folder=tmp_path, answers={"reload": WRONG})
    server = Server(folder=tmp_path)
    async with listening(library):
        await server.offload()
        with pytest.raises(errors.Damaged) as caught:
            await server.reload()
    assert caught.value.damaged == (errors.DamagedChunk(device=0, address="0x7f0000", bytes=4096),)


async def test_a_reload_that_found_no_room_may_be_tried_again(tmp_path: Path) -> None:
    """The process sleeps on and is whole, so that the next one may succeed."""
    library = FakeLibrary(folder=tmp_path, answers={"reload": FULL})
    server = Server(folder=tmp_path)
    async with listening(library):
        await server.offload()
        with pytest.raises(errors.OutOfGpuMemory, match=r"it needs 5\.4 GB\. Put the memory of another server aside"):
            await server.reload()
        library.answers.clear()
        await server.reload()
    assert library.state == "awake"


async def test_a_process_that_was_asleep_and_is_gone(tmp_path: Path) -> None:
    """A stale socket is no matter, one of a process whose memory was put aside is."""
    library = FakeLibrary(folder=tmp_path)
    server = Server(folder=tmp_path)
    async with listening(library):
        await server.offload()
    with pytest.raises(errors.Unreachable, match="process 7 could not bring its GPU memory back: nobody listens"):
        await server.reload()
    library.address.unlink()
    with pytest.raises(errors.Unreachable):
        await server.reload()


async def test_a_step_that_is_cancelled_is_undone_by_the_wake(tmp_path: Path) -> None:
    """The process may go on putting its memory aside after the Step's deadline; the wake finds it by its socket."""
    library = FakeLibrary(folder=tmp_path, begun={"offload": anyio.Event()}, go_on={"offload": anyio.Event()})
    server = Server(folder=tmp_path)
    async with listening(library):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.offload)
            await library.begun["offload"].wait()
            tasks.cancel_scope.cancel()
        library.go_on["offload"].set()
        await server.reload()
    assert library.operations == ["offload", "reload"]


async def test_a_process_that_does_not_say_is_an_error(tmp_path: Path) -> None:
    """One that listens and breaks off may hold memory: it is not passed over."""
    async with listening(FakeLibrary(folder=tmp_path, answers={"status": None})):
        with pytest.raises(errors.Unreachable, match="could not tell of its GPU memory"):
            await look(tmp_path)
    assert await look(tmp_path / "missing") == ()
    assert (await reload_all(tmp_path / "missing", threads=1)).moved == ()
