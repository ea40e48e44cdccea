"""Long random sequences of everything that an engine, a supervisor and a failing GPU do, against a plain model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest

from fakes.cuda.build import Built
from fakes.cuda.program import MIB, Engine, engine

STEPS = 40
MOST = 8  # allocations at a time
FAULTS = ("CREATE", "MAP", "ACCESS", "UNMAP", "RELEASE", "PINNED", "STREAM", "LAUNCH", "PTX", "SYNC_CAPTURE")
KINDS = ("random", "zeros", "holes", "ones", "first", "last")


@dataclass(slots=True)
class Model:
    """What there should be."""

    program: Engine
    dice: Random
    asleep: bool = False
    away: set[str] = field(default_factory=set)  # allocations whose contents cannot be touched now
    filled: set[str] = field(default_factory=set)
    allocated: list[str] = field(default_factory=list)
    count: int = 0

    def step(self) -> None:
        """Something that an engine or a supervisor may do now."""
        self.dice.choice((self.allocate, self.allocate, self.free, self.fill, self.check, self.move, self.move))()

    def allocate(self) -> None:
        """By either API, caught or too small."""
        if len(self.allocated) == MOST:
            return
        self.count += 1
        name = f"a{self.count}"
        size = self.dice.choice((self.dice.randrange(1, MIB), self.dice.randrange(MIB, 7 * MIB)))
        self.program(f"alloc {name} {size} {self.dice.randrange(2)} {self.dice.choice(('runtime', 'driver'))}")
        self.allocated.append(name)
        self.fill(name)

    def free(self) -> None:
        """Also what is away."""
        if self.allocated:
            name = self.dice.choice(self.allocated)
            self.allocated.remove(name)
            self.away.discard(name)
            self.filled.discard(name)
            self.program(f"free {name}")

    def fill(self, name: str | None = None) -> None:
        """What is here."""
        here = [each for each in self.allocated if each not in self.away]
        name = name or (self.dice.choice(here) if here else None)
        if name:
            self.program(f"fill {name} {self.dice.choice(KINDS)} {self.dice.randrange(1000)}")
            self.filled.add(name)

    def check(self) -> None:
        """Everything that is here."""
        for name in self.allocated:
            if name not in self.away and name in self.filled:
                self.program(f"check {name}")

    def move(self) -> None:
        """Offload or reload, one time in three with a fault: it works, or changes nothing."""
        fault = self.dice.choice(FAULTS) if self.dice.randrange(3) == 0 else None
        if fault:
            self.program(f"fault {fault} {self.dice.randrange(1, 8)}")
        going = self.dice.randrange(4) != 0 if not self.asleep else self.dice.randrange(4) == 0
        options = {"threads": self.dice.randrange(5)}
        if going:
            options |= {"chunk_bytes": self.dice.choice((65536, 1 << 20, 2 << 20)), "idle_s": 20}
        answer = self.program.ask("offload" if going else "reload", **options)
        if fault:
            self.program(f"fault {fault} 0")
        assert answer["ok"] or fault, answer
        if answer["ok"] and answer["already"] is (going != self.asleep):
            raise AssertionError(answer)
        if answer["ok"] and going != self.asleep:
            self.asleep = going
            self.away = set(caught(self.program, self.allocated)) if going else set()
        assert self.program.done("status")["state"] == ("asleep" if self.asleep else "awake")
        self.check()


def caught(program: Engine, names: list[str]) -> list[str]:
    """Those whose contents are away: a read of them fails."""
    return [name for name in names if program.raw(f"check {name}") == "error 1"]


def play(built: Built, folder: Path, seed: int) -> None:
    """A sequence, at whose end everything is awake, looked at and freed."""
    with engine(built, folder, env={"FAKE_CUDA_DEVICES": "2", "FAKE_CUDA_DIRTY": "1+"}) as program:
        program(f"alloc first {MIB} 0")
        program("fill first random 1")
        dice = Random(seed)  # noqa: S311 (no secrets)
        model = Model(program=program, dice=dice, allocated=["first"], filled={"first"})
        for _ in range(STEPS):
            model.step()
        program.done("reload")
        model.away = set()
        model.check()
        for name in model.allocated:
            program(f"free {name}")
        program.done("offload")


@pytest.mark.parametrize("seed", range(1, 4))
def test_memory_is_whole_after_any_sequence(cuda: Built, tmp_path: Path, seed: int) -> None:
    """Allocations, frees, contents, both ways and their failures in any order: every byte is as the model has it."""
    play(cuda, tmp_path / "gpu", seed)


def test_no_sanitizer_finds_fault_with_a_sequence(any_cuda: Built, tmp_path: Path) -> None:
    """The same with ASan, UBSan and TSan."""
    play(any_cuda, tmp_path / "gpu", 0)
