"""Weights of the fake server in GPU memory: those of the driver in `fakes.cuda`, or of whatever CUDA there is."""

from __future__ import annotations

import ctypes
import threading

WEIGHTS_BYTES = CACHE_BYTES = 16 << 20  # each above the size from which the library puts memory aside


class GpuWeights:
    """Random weights and a cache of zeros. Every answer needs the weights to be what they were at the load.

    Args:
        engine: the library with the commands, `libengine.so` of `fakes.cuda`.
    """

    def __init__(self, engine: str) -> None:
        self.library = ctypes.CDLL(engine, mode=ctypes.RTLD_LOCAL)
        self.lock = threading.Lock()
        for name, size, kind in (("weights", WEIGHTS_BYTES, "random"), ("cache", CACHE_BYTES, "zero")):
            for command in (f"alloc {name} {size}", f"fill {name} {kind} 1"):
                if not (answer := self.run(command)).startswith("ok"):
                    raise ValueError(f"{command}: {answer}")

    def run(self, command: str) -> str:
        """What the engine answers."""
        answer = ctypes.create_string_buffer(512)
        with self.lock:
            self.library.run_command(command.encode(), answer, len(answer))
        return answer.value.decode()

    def intact(self) -> bool:
        """Whether both hold what they held at the load."""
        return self.run("check weights") == self.run("check cache") == "ok"

    def damage(self) -> bool:
        """Flip a bit in the copy that is kept in ordinary memory while the GPU's is away; whether there was one."""
        return self.run("flip weights 4096") == "ok 1"
