"""The stub itself: what a real CUDA driver refuses, it refuses too, and its programs find what changed."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fakes.cuda.build import Built
from fakes.cuda.program import MIB, EngineFailed, engine

PROGRAM = """
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
u64, ptr, size = ctypes.c_ulonglong, ctypes.c_void_p, ctypes.c_size_t
class Prop(ctypes.Structure):
    _fields_ = [(n, ctypes.c_int) for n in ("type", "handles", "location", "device")] + [("win", ptr), ("flags", u64)]
prop, UNIT = Prop(1, 0, 1, 0), 2 << 20
cuda.cuInit(0)
context, at, handle, handle2 = ptr(), u64(), u64(), u64()
cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0); cuda.cuCtxSetCurrent(context)
def reserve(n): return cuda.cuMemAddressReserve(ctypes.byref(at), size(n), size(0), u64(0), u64(0))
def create(n): return cuda.cuMemCreate(ctypes.byref(handle), size(n), ctypes.byref(prop), u64(0))
def map_(n, h=handle): return cuda.cuMemMap(at, size(n), size(0), h, u64(0))
def unmap(n): return cuda.cuMemUnmap(at, size(n))
def give_back(n): return cuda.cuMemAddressFree(at, size(n))
def release(): return cuda.cuMemRelease(handle)
def access(n): return cuda.cuMemSetAccess(at, size(n), ctypes.byref((ctypes.c_int * 3)(1, 0, 3)), size(1))
def set_(n): return cuda.cuMemsetD8_v2(at, ctypes.c_ubyte(7), size(n))
def synchronize(): return cuda.cuCtxSynchronize()
def byte():
    b = ctypes.c_ubyte(); r = cuda.cuMemcpyDtoH_v2(ctypes.byref(b), at, size(1)); return (r, b.value)
"""


def evaluate(built: Built, *lines: str, **env: str) -> list[Any]:
    """What the lines evaluate to in a fresh process that has the stub as its driver."""
    script = PROGRAM + "\n".join(f"print(repr({line}))" for line in lines)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script],
        env={"LD_LIBRARY_PATH": str(built.folder), **env},
        capture_output=True,
        text=True,
        check=True,
    )
    return [eval(line) for line in done.stdout.splitlines()]  # noqa: S307 (numbers, printed above)


def test_memory_is_mapped_in_the_right_order_and_sizes_or_not_at_all(cuda: Built) -> None:
    """Odd sizes, a map without memory, a second map, a wrong unmap and a reservation in use are refused."""
    answers = evaluate(
        cuda,
        *("reserve(1)", "create(1)", "reserve(2*UNIT)", "map_(2*UNIT)", "create(UNIT)", "map_(2*UNIT)", "release()"),
        *(
            "create(2*UNIT)",
            "access(2*UNIT)",
            "map_(2*UNIT)",
            "map_(2*UNIT)",
            "set_(8)",
            "access(UNIT)",
            "access(2*UNIT)",
        ),
        *("set_(8)", "byte()", "give_back(2*UNIT)", "unmap(UNIT)", "unmap(2*UNIT)", "unmap(2*UNIT)", "byte()"),
        *(
            "map_(2*UNIT)",
            "release()",
            "map_(2*UNIT)",
            "release()",
            "give_back(UNIT)",
            "give_back(2*UNIT)",
            "give_back(2*UNIT)",
        ),
    )
    assert answers[:7] == [1, 1, 0, 1, 0, 1, 0]
    assert answers[7:14] == [0, 1, 0, 1, 1, 1, 0]
    assert answers[14:21] == [0, (0, 7), 1, 1, 0, 1, (1, 0)]
    assert answers[21:] == [0, 0, 1, 1, 1, 1, 1]


def test_work_without_a_context_is_refused(cuda: Built) -> None:
    """Calls that need a current context say so when there is none."""
    assert evaluate(cuda, "cuda.cuCtxSetCurrent(None)", "set_(8)", "synchronize()", "byte()") == [
        0,
        201,
        201,
        (201, 0),
    ]


def test_physical_memory_is_counted_until_nothing_holds_it(cuda: Built) -> None:
    """A handle or a mapping keeps memory in use; the device refuses what it has not."""
    used = "cuda.fakeCudaUsed(0) >> 20"
    lines = (
        "reserve(UNIT)",
        "create(UNIT)",
        used,
        "map_(UNIT)",
        "release()",
        used,
        "unmap(UNIT)",
        used,
        "create(UNIT)",
        "create(4*UNIT)",
    )
    answers = evaluate(cuda, *lines, FAKE_CUDA_BYTES=str(12 * MIB), FAKE_CUDA_CONTEXT_BYTES=str(4 * MIB))
    assert answers == [0, 0, 6, 0, 0, 6, 0, 4, 0, 2]


def test_a_touch_of_reserved_addresses_ends_the_process(cuda: Built) -> None:
    """What is reserved and not mapped cannot be read, as on a GPU."""
    with pytest.raises(subprocess.CalledProcessError, match="SIGSEGV"):
        evaluate(cuda, "reserve(UNIT)", "ctypes.string_at(at.value, 1)")


def test_asynchronous_work_is_done_no_earlier_than_it_is_waited_for(cuda: Built) -> None:
    """A pinned buffer that is written too early is what gets copied."""
    lines = (
        *("cuda.cuMemHostAlloc(ctypes.byref(handle2), size(16), 0)", "cuda.cuMemAlloc_v2(ctypes.byref(at), size(16))"),
        *("ctypes.memset(handle2.value, 3, 16) and 0", "cuda.cuMemcpyHtoDAsync_v2(at, handle2, size(16), None)"),
        *("ctypes.memset(handle2.value, 4, 16) and 0", "synchronize()", "byte()"),
    )
    assert evaluate(cuda, *lines) == [0, 0, 0, 0, 0, 0, (0, 4)]


@pytest.mark.parametrize("text", ["", ".version 6.0 .target sm_60 .entry other"])
def test_only_text_with_the_librarys_kernel_is_a_module(cuda: Built, text: str) -> None:
    """A module's text is refused without the entry that the stub knows."""
    assert evaluate(cuda, f"cuda.cuModuleLoadData(ctypes.byref(handle), {text.encode()!r})") == [218]


def test_a_kernel_marks_the_chunks_that_hold_something(cuda: Built) -> None:
    """Of three chunks one has a byte: its flag is set, once somebody waits."""
    text = b".version 6.0 .target sm_60 .entry warmboot_nonzero"
    launch = "cuda.cuLaunchKernel(handle2,3,1,1,256,1,1,0,None,(ptr*4)(*[ctypes.addressof(x) for x in keep]),None)"
    lines = (
        f"cuda.cuModuleLoadData(ctypes.byref(handle), {text!r})",
        "cuda.cuModuleGetFunction(ctypes.byref(handle2), handle, b'warmboot_nonzero')",
        "cuda.cuMemAlloc_v2(ctypes.byref(at), size(4096))",
        "cuda.cuMemsetD8_v2(at, 0, size(4096))",
        "cuda.cuMemsetD8_v2(u64(at.value + 1024 + 1023), 1, size(1))",
        "(keep := [u64(at.value), u64(1024), u64(3072), u64(at.value + 3072)]) and 0",
        launch,
        "synchronize()",
        "list(ctypes.string_at(at.value + 3072, 3))",
    )
    assert evaluate(cuda, *lines)[-3:] == [0, 0, [0, 1, 0]]


@pytest.mark.parametrize(("fault", "call"), [("CREATE", "create(UNIT)"), ("RESERVE", "reserve(UNIT)")])
def test_a_fault_comes_at_the_call_that_it_names(cuda: Built, fault: str, call: str) -> None:
    """ "2" is the second call alone; "2+" all from the second on."""
    assert evaluate(cuda, call, call, call, **{f"FAKE_CUDA_{fault}": "2"}) == [0, 2, 0]
    assert evaluate(cuda, call, call, call, **{f"FAKE_CUDA_{fault}": "2+"}) == [0, 2, 2]


def test_programs_see_what_they_wrote_and_what_changed(any_cuda: Built, tmp_path: Path) -> None:
    """Every pattern is read back, by several threads' allocations undisturbed, without a report of a sanitizer."""
    with engine(any_cuda, tmp_path / "gpu", told=False) as program:
        for number, pattern in enumerate(("random", "zeros", "holes", "ones", "first", "last")):
            program(f"alloc {pattern} {3 * MIB + 5}")
            program(f"fill {pattern} {pattern} {number}")
        program("churn 4")
        for pattern in ("random", "zeros", "holes", "ones", "first", "last"):
            program(f"check {pattern}")
        assert program("churn 0").split()[1] == "0"
        program("fault HTOD 1")
        program("free random")
        assert program("fork") == "3"


def test_python_loads_the_runtime_out_of_everybodys_sight(cuda: Built, tmp_path: Path) -> None:
    """In the Python program no global symbol is the runtime's, as below `import torch`."""
    with engine(cuda, tmp_path / "gpu", python=True, told=False) as program:
        program(f"alloc a {MIB}")
        assert "libcudart.so.13" in Path(f"/proc/{program.pid}/maps").read_text()
        with pytest.raises(EngineFailed, match="error 2"):
            program(f"alloc b {2 << 40}")
    assert not hasattr(ctypes.CDLL(None), "cudaMalloc")
