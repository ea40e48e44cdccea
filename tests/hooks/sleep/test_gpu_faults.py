"""Whatever fails on the way, memory is in one place or the other, whole, and the answer says what failed."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from fakes.cuda.build import Built
from fakes.cuda.program import MIB, Engine, engine

CHUNK = 2 * MIB
TIB = MIB << 20
NAMES = ("one", "two", "three")


def prepared(program: Engine) -> None:
    """Three allocations, two chunks each, full of something."""
    for number, name in enumerate(NAMES):
        program(f"alloc {name} {2 * CHUNK}")
        program(f"fill {name} random {number}")


def check(program: Engine) -> None:
    """All three are what they were."""
    for name in NAMES:
        program(f"check {name}")


def state(program: Engine) -> str:
    """What the library says."""
    return str(program.done("status")["state"])


# A failing copy ruins the context, so what was kept cannot be read any more: the faults below leave the context whole.
@pytest.mark.parametrize(
    ("fault", "call"),
    [
        ("PINNED", "cuMemHostAlloc"),
        ("STREAM", "cuStreamCreate"),
        ("SYNC_CAPTURE", "cuCtxSynchronize"),
        ("UNMAP", "cuMemUnmap"),
        ("RELEASE", "cuMemRelease"),
    ],
)
@pytest.mark.parametrize("nth", [1, 2])
def test_a_failed_offload_leaves_the_process_awake_and_whole(
    cuda: Built, tmp_path: Path, fault: str, call: str, nth: int
) -> None:
    """Also where half of the memory was given back already; and the next offload works."""
    with engine(cuda, tmp_path / "gpu") as program:
        prepared(program)
        if nth == 2 and fault in {"PINNED", "SYNC_CAPTURE"}:
            program.done("offload")  # the call is made once an offload
            program.done("reload")
            nth = 1
        program(f"fault {fault} {nth}")
        answer = program.ask("offload", threads=2)
        assert (answer["ok"], answer["error"], answer["call"]) == (False, "cuda", call)
        assert answer["name"].startswith("CUDA_ERROR_")
        assert call in answer["detail"]
        assert state(program) == "awake"
        check(program)
        assert program("number fakeCudaPinned") == "0"
        program.done("offload")
        program.done("reload")
        check(program)


@pytest.mark.parametrize("fault", ["DTOH 3", "HTOD 3"])
def test_a_failing_copy_is_an_error_of_cuda_and_gives_nothing_away(cuda: Built, tmp_path: Path, fault: str) -> None:
    """The context is ruined, as CUDA has it; the state is the one before, and every later request says so too."""
    with engine(cuda, tmp_path / "gpu") as program:
        prepared(program)
        way, before = ("offload", "awake") if fault.startswith("DTOH") else ("reload", "asleep")
        if way == "reload":
            program.done("offload")
        program(f"fault {fault}")
        for _ in range(2):
            answer = program.ask(way, threads=2)
            assert (answer["error"], answer["name"]) == ("cuda", "CUDA_ERROR_ECC_UNCORRECTABLE")
            status = program.done("status")
            (device,) = status["devices"]
            assert (status["state"], device["used_bytes"]) == (before, None)
            assert (device["code"], device["name"]) == (214, "CUDA_ERROR_ECC_UNCORRECTABLE")


@pytest.mark.parametrize(
    ("fault", "call"),
    [("MAP", "cuMemMap"), ("ACCESS", "cuMemSetAccess"), ("PINNED", "cuMemHostAlloc"), ("STREAM", "cuStreamCreate")],
)
@pytest.mark.parametrize("nth", [1, 2])
def test_a_failed_reload_leaves_the_process_asleep_and_whole(
    cuda: Built, tmp_path: Path, fault: str, call: str, nth: int
) -> None:
    """Nothing of it is on the GPU, and the next reload brings everything back."""
    with engine(cuda, tmp_path / "gpu") as program:
        prepared(program)
        asleep = program.done("offload")
        before = program.used()
        program(f"fault {fault} {1 if fault == 'PINNED' else nth}")
        answer = program.ask("reload", threads=2)
        if fault == "MAP":  # by what it says it has no memory either
            assert answer["error"] == "out_of_gpu_memory"
        else:
            assert (answer["error"], answer["call"]) == ("cuda", call)
        assert state(program) == "asleep"
        assert program.used() == before
        assert program.done("offload")["stored_bytes"] == asleep["stored_bytes"]
        program.done("reload")
        check(program)


@pytest.mark.parametrize("nth", [1, 3])
def test_a_reload_without_room_on_the_gpu_names_wanted_and_free_bytes(cuda: Built, tmp_path: Path, nth: int) -> None:
    """The n-th allocation finds no memory: those before it go again."""
    with engine(cuda, tmp_path / "gpu") as program:
        prepared(program)
        program.done("offload")
        program(f"fault CREATE {nth}")
        answer = program.ask("reload")
        assert (answer["error"], answer["device"], answer["wanted_bytes"]) == ("out_of_gpu_memory", 0, 6 * CHUNK)
        assert answer["free_bytes"] == (1 << 30) - program.used()
        assert state(program) == "asleep"
        program.done("reload")
        check(program)


def test_a_gpu_that_got_too_full_meanwhile_is_waited_out(cuda: Built, tmp_path: Path) -> None:
    """As long as somebody else has the memory the reload fails; afterwards it works."""
    with engine(cuda, tmp_path / "gpu", env={"FAKE_CUDA_BYTES": str(40 * MIB)}) as program:
        prepared(program)
        program.done("offload")
        program(f"alloc other {20 * MIB}")
        answer = program.ask("reload")
        assert (answer["error"], answer["free_bytes"]) == ("out_of_gpu_memory", 4 * MIB)
        program("free other")
        program.done("reload")
        check(program)


def test_an_offload_without_host_memory_names_the_bytes_and_changes_nothing(cuda: Built, tmp_path: Path) -> None:
    """Where the contents have no room in ordinary memory, they stay on the GPU."""
    with engine(cuda, tmp_path / "gpu") as program:
        program(f"alloc large {64 * MIB}")
        program("fill large random 1")
        program.done("offload")  # what its threads need is there from now on
        program.done("reload")
        program.done("status")  # is answered after what was stored has been given back
        pages = int(Path(f"/proc/{program.pid}/statm").read_text().split()[0])
        unlimited = resource.prlimit(program.pid, resource.RLIMIT_AS)
        limit = pages * resource.getpagesize() + 40 * MIB
        resource.prlimit(program.pid, resource.RLIMIT_AS, (limit, unlimited[1]))
        answer = program.ask("offload", threads=1)
        assert (answer["error"], answer["wanted_bytes"], state(program)) == ("out_of_host_memory", 64 * MIB, "awake")
        resource.prlimit(program.pid, resource.RLIMIT_AS, unlimited)
        program("check large")
        program.done("offload")
        program.done("reload")
        program("check large")


def test_more_than_the_host_has_is_refused_before_anything_is_copied(cuda: Built, tmp_path: Path) -> None:
    """Linux would promise the room, and kill the server for using it."""
    env = {"FAKE_CUDA_BYTES": str(2 * TIB), "FAKE_CUDA_DTOH": "1"}  # if it is copied after all, then not far
    with engine(cuda, tmp_path / "gpu", env=env) as program:
        program(f"alloc huge {TIB}")
        answer = program.ask("offload", zeros="none")
        assert (answer["error"], answer["wanted_bytes"], state(program)) == ("out_of_host_memory", TIB, "awake")


def test_a_gpu_that_is_not_idle_in_time_keeps_its_memory(cuda: Built, tmp_path: Path) -> None:
    """Nothing is put aside, and the offload works once the work has ended; the wait has its limit."""
    with engine(cuda, tmp_path / "gpu") as program:
        prepared(program)
        program("fault SYNC_HANG 1+")
        answer = program.ask("offload", idle_s=0.1)
        assert (answer["error"], state(program)) == ("not_idle", "awake")
        program("fault SYNC_HANG 0")
        program.done("offload")
        program.done("reload")
        check(program)


def test_a_flipped_bit_in_what_is_stored_is_found_with_its_address(cuda: Built, tmp_path: Path) -> None:
    """The process is damaged for good from then on, in its own words, and its memory is not given to anybody."""
    with engine(cuda, tmp_path / "gpu") as program:
        prepared(program)
        start = int(program(f"alloc four {2 * CHUNK}"), 16)
        program("fill four random 4")
        program.done("offload")
        assert program(f"flip four {CHUNK + 123_457}") == "1"
        answer = program.ask("reload")
        assert (answer["error"], answer["damaged_chunks"]) == ("checksum", 1)
        assert answer["damaged"] == [{"device": 0, "address": hex(start + CHUNK), "bytes": CHUNK}]
        assert hex(start + CHUNK) in answer["detail"]
        assert state(program) == "damaged"
        assert [program.ask(op)["error"] for op in ("reload", "offload")] == ["damaged", "damaged"]


def test_more_damage_than_fits_is_counted(cuda: Built, tmp_path: Path) -> None:
    """The first eight chunks are named, all are counted."""
    with engine(cuda, tmp_path / "gpu") as program:
        program(f"alloc many {10 * CHUNK}")
        program("fill many random 1")
        program.done("offload")
        assert [program(f"flip many {number * CHUNK + 77 * 8}") for number in range(10)] == ["1"] * 10
        answer = program.ask("reload", threads=3)
        assert (answer["damaged_chunks"], len(answer["damaged"])) == (10, 8)
        assert len({each["address"] for each in answer["damaged"]}) == 8


def test_without_verification_a_flipped_bit_is_not_looked_for(cuda: Built, tmp_path: Path) -> None:
    """`verify: false` trades the proof for time: the server gets what was stored."""
    with engine(cuda, tmp_path / "gpu") as program:
        prepared(program)
        program.done("offload", verify=False)
        assert program("flip two 4096") == "1"
        program.done("reload")
        assert program.raw("check two") == "bad 4096"


@pytest.mark.parametrize("way", ["FLIP_OUT", "FLIP_IN"])
def test_a_bit_that_flips_on_the_bus_is_beyond_the_checksums(cuda: Built, tmp_path: Path, way: str) -> None:
    """They cover what is stored: what the bus changes is for a golden answer to find."""
    with engine(cuda, tmp_path / "gpu") as program:
        prepared(program)
        program(f"fault {way} 2")
        program.done("offload")
        program.done("reload")
        assert sorted(program.raw(f"check {name}").split()[0] for name in NAMES) == ["bad", "ok", "ok"]


def test_a_device_without_virtual_memory_management_works_as_without_the_library(cuda: Built, tmp_path: Path) -> None:
    """Its memory is CUDA's own; the status says that nothing is caught and why, and so does stderr."""
    with engine(cuda, tmp_path / "gpu", env={"FAKE_CUDA_NO_VMM": "1+"}) as program:
        prepared(program)
        status = program.done("status")
        assert (status["state"], status["allocations"]) == ("off", 0)
        assert status["reason"] in program.log.read_text()
        assert program.ask("offload")["error"] == "off"
        check(program)
        for name in NAMES:
            program(f"free {name}")


def test_an_allocation_that_cannot_be_caught_is_cudas_own(cuda: Built, tmp_path: Path) -> None:
    """A failing call of virtual memory never fails the server; what was caught before stays ours."""
    with engine(cuda, tmp_path / "gpu") as program:
        program(f"alloc before {CHUNK}")
        program("fill before random 1")
        program("fault ACCESS 1")
        program(f"alloc after {CHUNK}")
        program("fill after random 2")
        assert program.done("status")["allocations"] == 1
        program.done("offload")
        program("check after")
        program.done("reload")
        program("check before")


@pytest.mark.parametrize(("used_before", "code"), [(False, 3), (True, 201)])
def test_an_allocation_without_a_context_is_its_callers_mistake(
    cuda: Built, tmp_path: Path, used_before: bool, code: int
) -> None:
    """The caller gets CUDA's own error, and what is allocated rightly is caught all the same."""
    with engine(cuda, tmp_path / "gpu") as program:
        if used_before:
            program("info 0")
        assert program.raw(f"stray {CHUNK}") == f"error {code}"
        program(f"alloc a {CHUNK}")
        status = program.done("status")
        assert (status["state"], status["allocations"]) == ("awake", 1)
        assert not program.log.read_text()


def test_out_of_memory_at_an_allocation_is_the_servers_own_error(cuda: Built, tmp_path: Path) -> None:
    """As without the library, and nothing leaks: what fits afterwards is had."""
    with engine(cuda, tmp_path / "gpu", env={"FAKE_CUDA_BYTES": str(40 * MIB)}) as program:
        assert program.raw(f"alloc a {30 * MIB}") == "error 2"
        program(f"alloc a {20 * MIB}")
        assert program.raw(f"alloc b {10 * MIB}") == "error 2"
        program("free a")
        program(f"alloc b {24 * MIB}")
        assert program.done("status")["allocations"] == 1


@pytest.mark.parametrize("next_step", ["alloc", "offload"])
def test_a_free_while_a_stream_is_captured_happens_later(cuda: Built, tmp_path: Path, next_step: str) -> None:
    """Nobody may wait for the GPU then; the memory goes with the next allocation or offload."""
    with engine(cuda, tmp_path / "gpu") as program:
        prepared(program)
        before = program.used()
        program("fault SYNC_CAPTURE 1+")
        program("free one")
        program("fault SYNC_CAPTURE 0")
        if next_step == "alloc":
            program(f"alloc small {MIB}")
            assert program.used() == before - CHUNK
        else:
            assert program.done("offload")["allocations"] == 2
            assert program.used() == before - 6 * CHUNK
            program.done("reload")
            program("check two")


def test_a_threshold_of_nothing_leaves_empty_allocations_to_cuda(cuda: Built, tmp_path: Path) -> None:
    """CUDA gives no memory for no bytes, and that is no error; a threshold that is no number is the default one."""
    with engine(cuda, tmp_path / "gpu", env={"WARMBOOT_GPU_MEMORY_MIN": "0"}) as program:
        program("alloc nothing 0")
        program("alloc byte 1")
        assert program.done("status")["allocations"] == 1
    with engine(cuda, tmp_path / "gpu", env={"WARMBOOT_GPU_MEMORY_MIN": "8 MiB"}) as program:
        program("alloc byte 1")
        program(f"alloc large {8 * MIB}")
        assert program.done("status")["allocations"] == 1
