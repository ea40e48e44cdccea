"""Allocations, frees, offloads, reloads and questions at once: no race, no leak, and every byte as it was."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fakes.cuda.build import Built
from fakes.cuda.program import MIB, TSAN, Engine, engine
from support import until

CYCLES = 3


def test_threads_allocate_and_free_while_memory_goes_and_comes(any_cuda: Built, tmp_path: Path) -> None:
    """What was allocated before and after is whole; none of the threads' own calls fails."""
    with engine(any_cuda, tmp_path / "gpu") as program:
        for name in ("a", "b"):
            program(f"alloc {name} {3 * MIB}")
            program(f"fill {name} holes 7")
        program("churn 4")
        for _ in range(CYCLES):
            program.done("offload", threads=4)
            program.done("reload", threads=4)
            program("check a")
        rounds, failures = map(int, program("churn 0").split())
        assert (rounds > 0, failures) == (True, 0)
        program("check b")
        assert program.done("status")["allocations"] == 2


def test_a_free_that_waits_for_the_gpu_holds_nobody_else_up(any_cuda: Built, tmp_path: Path) -> None:
    """Others allocate, free and ask meanwhile; what they wait for may be what the GPU needs to go on."""
    with engine(any_cuda, tmp_path / "gpu") as program:
        program(f"alloc a {MIB}")
        program("fault SYNC_HANG 1+")
        program("free a apart")
        program(f"alloc b {MIB}")
        assert program.done("status")["allocations"] == 2
        program("fault SYNC_HANG 0")
        program("join")
        assert program.done("status")["allocations"] == 1


def test_an_offload_that_waits_for_the_gpu_holds_nobody_up(any_cuda: Built, tmp_path: Path) -> None:
    """Others allocate and free until the GPU is idle; what they allocated goes with the rest."""
    with engine(any_cuda, tmp_path / "gpu") as program:
        program(f"alloc a {MIB}")
        program("fill a random 1")
        program("fault SYNC_HANG 1+")
        tasks = len(threads(program))
        with program.connect() as connection:
            connection.sendall(b'{"op": "offload"}\n')
            until(lambda: len(threads(program)) > tasks)  # the one that waits
            program(f"alloc b {MIB}")
            program("fault SYNC_HANG 0")
            assert json.loads(connection.recv(4096))["allocations"] == 2
        program.done("reload")
        program("check a")


def test_several_clients_ask_at_once(any_cuda: Built, tmp_path: Path) -> None:
    """Requests are taken one after the other, whatever their order is: each is answered, and memory stays whole."""
    requests = ["offload", "status", "reload", "status"] * 4
    with engine(any_cuda, tmp_path / "gpu") as program, ThreadPoolExecutor(8) as pool:
        program(f"alloc a {5 * MIB}")
        program("fill a random 1")
        answers = list(pool.map(program.ask, requests))
        assert all(answer["ok"] for answer in answers)
        program.done("reload")
        program("check a")


def test_threads_go_on_when_memory_can_no_longer_be_caught(any_cuda: Built, tmp_path: Path) -> None:
    """From one failure on all of it is CUDA's own; nobody's call fails, and the reason is said in one line."""
    with engine(any_cuda, tmp_path / "gpu") as program:
        program(f"alloc a {MIB}")
        program("fill a random 1")
        program("churn 4")
        program("fault ACCESS 1+")
        until(lambda: "reason" in program.done("status"))
        assert program("churn 0").split()[1] == "0"
        program("fault ACCESS 0")
        program.done("offload")
        program.done("reload")
        program("check a")
        assert len(program.log.read_text().splitlines()) == 1


def test_a_program_that_ends_in_the_middle_of_an_offload_just_ends(any_cuda: Built, tmp_path: Path) -> None:
    """Neither a hanging exit nor a crash; its socket goes with it."""
    # A thread that ended and that nobody joined yet is no leak when the whole process ends just then.
    env = {"FAKE_CUDA_SLOW_COPY_US": "30000", "TSAN_OPTIONS": f"{TSAN}:report_thread_leaks=0"}
    with engine(any_cuda, tmp_path / "gpu", env=env) as program:
        program(f"alloc a {40 * MIB}")
        program("fill a random 1")
        tasks = len(threads(program))
        with program.connect() as connection:
            connection.sendall(b'{"op": "offload", "threads": 2}\n')
            until(lambda: len(threads(program)) > tasks)
            assert program.process.stdin
            program.process.stdin.close()
            program.process.wait()
    assert list((tmp_path / "gpu").iterdir()) == []


def test_host_memory_is_given_back_after_a_reload(cuda: Built, tmp_path: Path) -> None:
    """Cycles do not add up: what a reload no longer needs goes once its answer is out."""
    with engine(cuda, tmp_path / "gpu") as program:
        program(f"alloc a {24 * MIB}")
        program("fill a random 1")
        before = anonymous_bytes(program)
        for _ in range(3):
            program.done("offload")
            assert anonymous_bytes(program) > before + 20 * MIB
            program.done("reload")
            until(lambda: anonymous_bytes(program) < before + 8 * MIB)


def threads(program: Engine) -> list[Path]:
    """The threads of a program."""
    return list(Path(f"/proc/{program.pid}/task").iterdir())


def anonymous_bytes(program: Engine) -> int:
    """Memory of the process that is no file's."""
    lines = Path(f"/proc/{program.pid}/smaps_rollup").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("Anonymous:")]
    return int(line.split()[1]) * 1024
