"""What an engine has in GPU memory is the same after an offload and a reload, and gone from the GPU in between."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from fakes.cuda.build import Built
from fakes.cuda.program import MIB, Engine, EngineFailed, engine

CHUNK = 2 * MIB
CONTEXT = 16 * MIB  # what the stub's own context takes
PATTERNS = ("random", "zeros", "holes", "ones", "first", "last")
DIRTY = {"FAKE_CUDA_DIRTY": "1+"}  # new physical memory is not all zeros, as on a GPU that somebody else has used
ODD = 5 * MIB + 12_345  # three chunks, the last of which the engine uses in part


def fill_all(program: Engine, bytes_each: int = ODD) -> None:
    """An allocation for every pattern, made by both APIs in turn."""
    for number, pattern in enumerate(PATTERNS):
        program(f"alloc {pattern} {bytes_each} 0 {('runtime', 'driver')[number % 2]}")
        program(f"fill {pattern} {pattern} {number}")


def check_all(program: Engine) -> None:
    """Every byte is what it was."""
    for pattern in PATTERNS:
        program(f"check {pattern}")


def test_contents_are_equal_after_an_offload_and_a_reload(any_cuda: Built, tmp_path: Path) -> None:
    """Patterns, odd sizes, both APIs; twice over, with other threads and chunks; no sanitizer reports anything."""
    with engine(any_cuda, tmp_path / "gpu", env=DIRTY) as program:
        fill_all(program)
        for options in ({}, {"threads": 3, "chunk_bytes": 65536, "zeros": "host"}):
            assert program.done("offload", **options)["allocations"] == len(PATTERNS)
            assert program.used() == CONTEXT
            program.done("reload", threads=2)
            assert program.used() == CONTEXT + len(PATTERNS) * 3 * CHUNK
            check_all(program)
        program("free random")


def test_a_python_program_has_the_same_memory_too(cuda: Built, tmp_path: Path) -> None:
    """A runtime that Python loaded for one library alone is caught, and its contents come back."""
    with engine(cuda, tmp_path / "gpu", env=DIRTY, python=True) as program:
        fill_all(program)
        assert program.done("offload")["allocations"] == len(PATTERNS)
        program.done("reload")
        check_all(program)


# What is stored of three chunks of each pattern: holes keeps the middle one, first and last keep one.
@pytest.mark.parametrize(("zeros", "stored"), [("gpu", 3 + 0 + 1 + 3 + 1 + 1), ("host", 9), ("none", 18)])
def test_chunks_of_zeros_are_not_stored(cuda: Built, tmp_path: Path, zeros: str, stored: int) -> None:
    """Stored and left out are told in bytes, whoever looks for zeros; they come back as zeros."""
    with engine(cuda, tmp_path / "gpu") as program:
        fill_all(program)
        answer = program.done("offload", zeros=zeros)
        assert (answer["zeros"], answer["bytes"]) == (zeros, 18 * CHUNK)
        assert (answer["stored_bytes"], answer["zero_bytes"]) == (stored * CHUNK, (18 - stored) * CHUNK)
        status = program.done("status")
        assert (status["stored_bytes"], status["zero_bytes"]) == (stored * CHUNK, (18 - stored) * CHUNK)
        program.done("reload")
        check_all(program)
        assert program.done("status")["stored_bytes"] == 0


FULL = {"FAKE_CUDA_BYTES": str(CONTEXT + 18 * CHUNK)}


@pytest.mark.parametrize("env", [{"FAKE_CUDA_PTX": "1+"}, {"FAKE_CUDA_LAUNCH": "1+"}, FULL])
def test_the_host_looks_for_zeros_where_the_kernel_cannot_run(cuda: Built, tmp_path: Path, env: dict[str, str]) -> None:
    """A driver that cannot compile or launch it, or a GPU that is full to the last byte: the same is left out."""
    with engine(cuda, tmp_path / "gpu", env=env) as program:
        fill_all(program)
        answer = program.done("offload")
        assert (answer["zeros"], answer["stored_bytes"]) == ("host", 9 * CHUNK)
        program.done("reload")
        check_all(program)


def test_nothing_is_left_of_the_memory_while_it_is_away(cuda: Built, tmp_path: Path) -> None:
    """No physical memory, no pinned buffer and no stream stays; a touch of the address is an illegal access."""
    with engine(cuda, tmp_path / "gpu", code=-signal.SIGSEGV) as program:
        fill_all(program)
        assert len(held(program)) == len(PATTERNS)
        program.done("offload")
        assert held(program) == []
        assert program("number fakeCudaPinned") == "0"
        assert program("number fakeCudaStreams") == "0"
        assert program.raw("check random") == "error 1"
        with pytest.raises(EngineFailed, match="exit code -11"):
            program("touch random")


def held(program: Engine) -> list[Path]:
    """Physical memory of the stub that the process has open."""
    links = Path(f"/proc/{program.pid}/fd").iterdir()
    return [link for link in links if "fake-cuda" in str(link.readlink())]


def test_work_that_is_under_way_is_waited_for(cuda: Built, tmp_path: Path) -> None:
    """Before memory goes, and before it is freed: what the server has begun is neither lost nor an illegal access."""
    with engine(cuda, tmp_path / "gpu") as program:
        program("alloc small 4096")
        program("fill small random 1")
        for name in ("a", "b"):
            program(f"alloc {name} {3 * MIB}")
        program("set a")
        program.done("offload", zeros="none")
        program("check small")
        program.done("reload")
        program("check a")
        program("set b")
        program("free b")
        program("check small")
        program("check a")


def test_both_ways_are_idempotent(cuda: Built, tmp_path: Path) -> None:
    """A second offload or reload changes nothing and says so; so does a reload of what never went."""
    with engine(cuda, tmp_path / "gpu") as program:
        fill_all(program)
        assert program.done("reload")["already"] is True
        first, second = program.done("offload"), program.done("offload")
        assert (first["already"], second["already"]) == (False, True)
        assert {key: first[key] for key in ("bytes", "stored_bytes", "zero_bytes")} == {
            key: second[key] for key in ("bytes", "stored_bytes", "zero_bytes")
        }
        assert [program.done("reload")["already"] for _ in range(2)] == [False, True]
        check_all(program)


def test_memory_is_allocated_and_freed_while_the_rest_is_away(any_cuda: Built, tmp_path: Path) -> None:
    """New memory works at once; what is freed does not come back; the rest comes back whole."""
    with engine(any_cuda, tmp_path / "gpu") as program:
        fill_all(program)
        program.done("offload")
        program("free ones")
        program(f"alloc new {3 * MIB}")
        program("fill new random 9")
        program("check new")
        assert program.done("reload")["allocations"] == len(PATTERNS) - 1
        for name in (*PATTERNS, "new"):
            if name != "ones":
                program(f"check {name}")
        assert program.used() == CONTEXT + 5 * 3 * CHUNK + 2 * CHUNK
        assert program.done("offload")["allocations"] == len(PATTERNS)
        program.done("reload")
        program("check new")


def test_only_memory_from_the_threshold_on_is_caught(cuda: Built, tmp_path: Path) -> None:
    """A byte less is CUDA's own, stays where it is and keeps its contents; the default is 8 MiB."""
    sizes = {"small": 8 * MIB - 1, "large": 8 * MIB}
    with engine(cuda, tmp_path / "gpu", env={"WARMBOOT_GPU_MEMORY_MIN": ""}) as program:
        for name, size in sizes.items():
            program(f"alloc {name} {size}")
            program(f"fill {name} random 1")
        status = program.done("status")
        assert (status["allocations"], status["bytes"]) == (1, 8 * MIB)
        assert device(status)["used_bytes"] == CONTEXT + 16 * MIB
        program.done("offload")
        assert program.used() == CONTEXT + 8 * MIB
        program("check small")
        program.done("reload")
        program("check large")


def device(status: dict[str, Any], number: int = 0) -> dict[str, Any]:
    """What a status says of a device."""
    (found,) = [each for each in status["devices"] if each["device"] == number]
    assert isinstance(found, dict)
    return found


def test_status_accounts_for_the_whole_device(cuda: Built, tmp_path: Path) -> None:
    """Caught, in use, by this process (NVML) and before the first allocation: an escape can be reckoned from these."""
    with engine(cuda, tmp_path / "gpu") as program:
        program(f"alloc caught {4 * MIB}")
        program(f"alloc escaped {MIB - 1}")
        status = program.done("status")
        assert (status["version"], status["pid"], status["state"]) == (1, program.pid, "awake")
        assert device(status) == {
            "device": 0,
            "bytes": 4 * MIB,
            "used_bytes": CONTEXT + 6 * MIB,
            "total_bytes": 1 << 30,
            "process_bytes": CONTEXT + 6 * MIB,
            "before_bytes": CONTEXT,
        }
    with engine(cuda, tmp_path / "gpu", env={"FAKE_NVML": "refuse"}) as program:
        program(f"alloc caught {4 * MIB}")
        assert device(program.done("status"))["process_bytes"] is None


def test_two_devices_in_a_process_keep_their_memory_and_their_access(any_cuda: Built, tmp_path: Path) -> None:
    """Both devices' memory goes and returns; what one may read of the other it may still, new memory included."""
    with engine(any_cuda, tmp_path / "gpu", env={"FAKE_CUDA_DEVICES": "2"}) as program:
        for number in (0, 1):
            program(f"alloc on{number} {ODD} {number}")
            program(f"fill on{number} random {number}")
        assert program.raw("read on1 0") == "error 1"
        program("peer 0 1")
        program("read on1 0")
        assert program.raw("read on0 1") == "error 1"
        answer = program.done("offload")
        assert answer["bytes"] == 6 * CHUNK
        assert (program.used(0), program.used(1)) == (CONTEXT, CONTEXT)
        program.done("reload")
        assert (program.used(0), program.used(1)) == (CONTEXT + 3 * CHUNK,) * 2
        program("read on1 0")
        assert program.raw("read on0 1") == "error 1"
        for number in (0, 1):
            program(f"check on{number}")
        program(f"alloc later {MIB} 1")
        program("read later 0")
        assert [each["device"] for each in program.done("status")["devices"]] == [0, 1]


def test_access_that_was_given_before_there_was_memory_counts(cuda: Built, tmp_path: Path) -> None:
    """Engines give their devices access to each other first, and allocate afterwards; what is taken back is gone."""
    with engine(cuda, tmp_path / "gpu", env={"FAKE_CUDA_DEVICES": "2"}) as program:
        program("peer 0 1")
        program(f"alloc on1 {MIB} 1")
        program("read on1 0")
        program("peer 0 1 off")
        program.done("offload")
        program.done("reload")
        program("read on1 1")
        assert program.raw("read on1 0") == "error 1"
