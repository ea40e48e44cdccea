"""A program with GPU memory, and nothing else: it allocates, tells what it took, and answers on stdin.

    PYTHON bare_child.py [--ctypes] [--device N ...] UNIT_MIB RANDOM ZERO

RANDOM and ZERO are how many tensors of UNIT_MIB hold random bytes, and zeros; with them come one of 64 pieces of 2 MiB
of which every other is zeros, and one of an odd size. `--ctypes` does without torch, through the CUDA runtime.

Commands, one a line: `hash`; `malloc COUNT BYTES`; `take MIB`: allocate until so much is free, and no more; `give`:
give that back; `peer`: copy between two GPUs directly. Each is answered by one line of JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

BORN = time.time()
MIB = 1 << 20
ODD_BYTES = 9_000_064


def runtime() -> ctypes.CDLL:
    """The CUDA runtime that is loaded, else the usual one; through the preloaded library if there is one."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    mapped = sorted({line.split()[-1] for line in maps if "/libcudart.so" in line})
    own = ctypes.CDLL(mapped[0] if mapped else "libcudart.so.13", mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(None) if os.environ.get("WARMBOOT_GPU_MEMORY") else own


class Memory:
    """GPU memory by the runtime's own calls, for a machine without torch."""

    def __init__(self, unit: int, random: int, zero: int) -> None:
        self.cuda = runtime()
        self.held: list[tuple[ctypes.c_void_p, int]] = []
        for number in range(random):
            self.hold(os.urandom(min(unit, MIB)) * max(1, unit // MIB), unit, number)
        for _ in range(zero):
            self.hold(bytes(unit), unit, 0)

    def hold(self, data: bytes, size: int, number: int) -> None:
        place = ctypes.c_void_p()
        assert not self.cuda.cudaMalloc(ctypes.byref(place), ctypes.c_size_t(size)), number
        assert not self.cuda.cudaMemcpy(place, data, ctypes.c_size_t(size), 1), number
        self.held.append((place, size))

    def hash(self) -> str:
        found = hashlib.blake2b()
        for place, size in self.held:
            back = ctypes.create_string_buffer(size)
            assert not self.cuda.cudaMemcpy(back, place, ctypes.c_size_t(size), 2)
            found.update(back.raw)
        return found.hexdigest()[:32]


class Tensors:
    """GPU memory as torch takes it, on one GPU or several."""

    def __init__(self, unit: int, random: int, zero: int, devices: list[int]) -> None:
        import torch

        self.torch = torch
        self.held = []
        for device in devices:
            self.random = torch.Generator(f"cuda:{device}").manual_seed(device + 1)
            with torch.cuda.device(device):
                self.held += [self.noise(unit) for _ in range(random)]
                self.held += [torch.zeros(unit // 8, dtype=torch.int64, device="cuda") for _ in range(zero)]
                pieces = self.noise(128 * MIB).view(64, -1)
                pieces[::2] = 0
                self.held += [pieces.view(-1), self.noise(ODD_BYTES)]
                self.held[-3][-1] = 1  # the last 8 bytes of a tensor of zeros
                torch.cuda.synchronize()
        self.taken: list[Any] = []

    def noise(self, size: int) -> Any:
        return self.torch.empty(size // 8, dtype=self.torch.int64, device="cuda").random_(generator=self.random)

    def hash(self) -> str:
        """Of every byte, and of its place; computed on the GPU, 128 MiB at a time."""
        torch, total = self.torch, 0
        for tensor in self.held:
            weights = torch.arange(16 * MIB, dtype=torch.int64, device=tensor.device) * 0x9E3779B97F4A7C1 + 0x1D5
            for part in tensor.split(16 * MIB):
                total = (total * 0x100000001B3 + int((part * weights[: len(part)]).sum())) % (1 << 64)
            del weights
        return f"{total:016x}"

    def take(self, leave_mib: int) -> int:
        self.taken = []
        while (free := self.torch.cuda.mem_get_info()[0] // MIB - leave_mib) >= 512:
            size = min(free, 8192) // 2 * 2
            self.taken.append(self.torch.ones(size * MIB, dtype=self.torch.uint8, device="cuda"))
        return sum(one.numel() for one in self.taken)

    def give(self) -> int:
        self.taken = []
        self.torch.cuda.empty_cache()
        return int(self.torch.cuda.mem_get_info()[0])

    def peer(self) -> list[bool]:
        """Whether what one GPU has arrives at another: the first two large tensors of each."""
        torch, found = self.torch, []
        for tensor in self.held[:1]:
            for device in range(torch.cuda.device_count()):
                other = tensor.to(f"cuda:{device}", copy=True)
                found.append(bool((other.cpu()[:: 1 << 16] == tensor.cpu()[:: 1 << 16]).all()))
                found.append(torch.cuda.can_device_access_peer(0, device) if device else True)
                del other
        torch.cuda.synchronize()
        return found


def malloc_us(cuda: ctypes.CDLL, count: int, size: int) -> dict[str, float]:
    """How long an allocation takes, and giving it back."""
    took: dict[str, list[float]] = {"malloc_us": [], "free_us": []}
    for _ in range(count):
        place = ctypes.c_void_p()
        began = time.perf_counter()
        code = cuda.cudaMalloc(ctypes.byref(place), ctypes.c_size_t(size))
        took["malloc_us"].append((time.perf_counter() - began) * 1e6)
        assert not code, code
        began = time.perf_counter()
        cuda.cudaFree(place)
        took["free_us"].append((time.perf_counter() - began) * 1e6)
    return {name: round(statistics.median(row), 1) for name, row in took.items()}


def say(**what: Any) -> None:
    """One line."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Allocate, then do as asked until stdin ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ctypes", action="store_true")
    parser.add_argument("--device", type=int, action="append")
    parser.add_argument("unit_mib", type=int)
    parser.add_argument("random", type=int)
    parser.add_argument("zero", type=int)
    args = parser.parse_args()
    memory: Any
    seconds = {}
    began = time.monotonic()
    if not args.ctypes:
        import torch

        seconds["import"] = round(time.monotonic() - began, 3)
        began = time.monotonic()
        torch.cuda.init()
        torch.zeros(1, device="cuda")
        seconds["first_use"] = round(time.monotonic() - began, 3)
        began = time.monotonic()
    sizes = (args.unit_mib * MIB, args.random, args.zero)
    memory = Memory(*sizes) if args.ctypes else Tensors(*sizes, args.device or [0])
    seconds["allocate"] = round(time.monotonic() - began, 3)
    say(pid=os.getpid(), seconds=seconds, bytes=sum(sizes[0] for _ in range(args.random + args.zero)))
    for line in sys.stdin:
        name, *rest = line.split()
        began = time.monotonic()
        if name == "malloc":
            found: Any = malloc_us(runtime(), *map(int, rest))
        else:
            found = getattr(memory, name)(*map(int, rest))
        say(found=found, seconds=round(time.monotonic() - began, 3))


if __name__ == "__main__":
    main()
