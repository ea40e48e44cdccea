"""Engines beside llama.cpp on a real GPU: cold start, sleep, the driver's checkpoint of the tree, wake, golden answer.

    PYTHONPATH=.:tests:tests/gpu python tests/gpu/other_engines.py vllm|sglang|images ROOT [--python P] [--json FILE]

Needs a machine with one NVIDIA GPU of 80 GB, driver 570 or later, `nvidia-smi`; P is the interpreter of the
engine's environment, with torch. No network. It writes a model of random weights below ROOT (Qwen3 8B in bf16, 16 GB;
FLUX.2-klein's real shapes, 36 GB), serves it by the engine's own settings, and prints for each way of leaving the GPU

- the cold start to READY, with every Step's seconds, and the GPU memory in use;
- per cycle: seal (the engine's own sleep included), lock, checkpoint, GPU memory in between, restore, unlock, resume
  (wake, health and golden answer included), and the next answer, in seconds; whether it came back to the last bit.

The processes simply stay in place of being saved: what is proved is the driver's part, the engine's and ours.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import anyio
import driver
from driver import Checkpoint, used_mib
from journal import Journal
from prints import say, timed

from hooks.golden.step import Golden, GoldenMismatch
from hooks.warmup import Text
from supervisor import Daemon, Hooks, Secret
from supervisor.engines import Engine

LAST: Final = 60  # lines of the server's log, shown when it fails
KEY: Final = Secret("sk-made-up-for-tests")


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way of leaving the GPU and coming back.

    Attributes:
        engine: the settings.
        checkpoint: whether the driver's checkpoint of the tree follows the engine's sleep.
    """

    engine: Engine
    checkpoint: bool = True


def gpu_pids() -> list[int]:
    """The processes with memory on the GPU."""
    out = subprocess.run(
        ["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader"], capture_output=True, text=True, check=True
    )
    return sorted({int(line) for line in out.stdout.split()})


class Cycle:
    """One seal and resume, in seconds."""

    def __init__(self, daemon: Daemon, golden: Golden, *, checkpoint: bool) -> None:
        self.row: dict[str, Any] = {"gpu_mib_before": used_mib()}
        pid = daemon.supervised.pid
        self._time("seal_s", daemon.seal)
        self.row["gpu_mib_sealed"] = used_mib()
        if checkpoint:
            self._checkpoint()
        self._time("resume_s", daemon.resume)
        try:
            self._time("answer_s", lambda: anyio.run(golden.replay.__call__, daemon.supervised.child))
            self.row["to_the_last_bit"] = True
        except GoldenMismatch as mismatch:
            self.row["to_the_last_bit"] = str(mismatch)
        self.row |= {"gpu_mib_after": used_mib(), "same_child": pid == daemon.supervised.pid}

    def _checkpoint(self) -> None:
        checkpoints = [Checkpoint(pid) for pid in gpu_pids()]

        def every(call: Callable[[Checkpoint], None]) -> None:
            for checkpoint in checkpoints:
                call(checkpoint)

        self.row["processes_with_gpu_memory"] = len(checkpoints)
        self._time("lock_s", lambda: every(Checkpoint.lock))
        self._time("checkpoint_s", lambda: every(Checkpoint.checkpoint))
        self.row["gpu_mib_between"] = used_mib()
        self._time("restore_s", lambda: every(Checkpoint.restore))
        self._time("unlock_s", lambda: every(Checkpoint.unlock))

    def _time(self, name: str, what: Callable[[], object]) -> None:
        self.row[name] = timed(what)


def play(name: str, way: Way, *, cycles: int) -> dict[str, Any]:
    """One cold start and its cycles; what was seen, or the error with the end of the server's log."""
    say(f"== {name}")
    journal = Journal()
    golden, recorded = Golden(), Golden(tolerance=0.0)
    hooks = way.engine.hooks() + Hooks(
        warmup=(Text(),) if way.engine.dialect.chat_path else (),
        before_seal=(golden.record,),
        after_resume=(golden.replay,),
        observers=(journal,),
    )
    result: dict[str, Any] = {"gpu_mib_before": used_mib()}
    daemon = Daemon(way.engine.profile(), hooks)
    try:
        result["start_s"] = timed(daemon.start)
        result |= {"steps": dict(journal.steps), "gpu_mib": used_mib(), "cycles": []}
        say(f"cold start: {result}")
        anyio.run(recorded.record.__call__, daemon.supervised.child)
        for _ in range(cycles):
            result["cycles"].append(Cycle(daemon, recorded, checkpoint=way.checkpoint).row)
            say(f"cycle: {result['cycles'][-1]}")
    except Exception as error:  # noqa: BLE001  reported
        result["error"] = f"{type(error).__name__}: {error}"
        say("\n".join([*journal.lines[-LAST:], result["error"]]))
    finally:
        with suppress(Exception):
            result["stop_s"] = timed(daemon.stop)
        result |= {"gpu_mib_stopped": used_mib(), "left": gpu_pids()}
    return result


def vllm(python: str, model: Path) -> dict[str, Way]:
    """vLLM with CUDA graphs, as it is and at both of its sleep levels."""
    from supervisor.engines.vllm import Vllm

    def engine(sleep: Any, **more: Any) -> Vllm:
        return Vllm(
            model=model,
            binary=(python, "-m", "vllm.entrypoints.cli.main"),
            served_name="random",
            max_model_len=4096,
            gpu_memory_utilization=0.3,
            sleep=sleep,
            api_key=KEY,
            env={"HF_HUB_OFFLINE": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0"},
            **more,
        )

    return {
        "sleep level 1": Way(engine=engine(1)),
        "sleep level 2": Way(engine=engine(2)),
        "the driver alone": Way(engine=engine(None)),
    }


def sglang(python: str, model: Path) -> dict[str, Way]:
    """SGLang with graphs for decoding, as it is and with its memory saver, on kernels that an H200 without nvcc has."""
    from supervisor.engines.sglang import Sglang

    def engine(memory_saver: bool) -> Sglang:
        return Sglang(
            model=model,
            binary=(python, "-m", "sglang.launch_server"),
            served_name="random",
            context_length=4096,
            mem_fraction_static=0.3,
            memory_saver=memory_saver,
            api_key=KEY,
            env={"HF_HUB_OFFLINE": "1"},
            extra_args=(
                *("--attention-backend", "triton", "--sampling-backend", "pytorch", "--grammar-backend", "none"),
                *("--cuda-graph-backend-decode", "full", "--cuda-graph-backend-prefill", "disabled"),
            ),
        )

    return {"memory saver": Way(engine=engine(True)), "the driver alone": Way(engine=engine(False))}


def images(python: str, model: Path) -> dict[str, Way]:
    """FLUX.2-klein by diffusers, 1024 x 1024 in 4 steps."""
    from supervisor.engines.images import Images

    return {"the driver alone": Way(engine=Images(python=python, model=model, served_name="random", api_key=KEY))}


ENGINES: Final = {"vllm": (vllm, "qwen3"), "sglang": (sglang, "qwen3"), "images": (images, "flux2-klein")}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=tuple(ENGINES))
    parser.add_argument("root", type=Path, help="models go there")
    parser.add_argument("--python", default=sys.executable, help="of the engine's environment")
    parser.add_argument("--cycles", type=int, default=5)
    parser.add_argument("--only", action="append", metavar="WAY", help="repeatable")
    parser.add_argument("--json", type=Path, help="where the numbers go")
    args = parser.parse_args()
    ways, shapes = ENGINES[args.engine]
    model = args.root.resolve() / shapes
    results: dict[str, Any] = {"gpu": driver.describe(), "engine": args.engine}
    if not model.exists():
        made = model.with_suffix(".new")
        script = Path(__file__).with_name("models.py")
        results["made_s"] = timed(lambda: subprocess.run([args.python, script, shapes, made], check=True))
        made.rename(model)
    try:
        for name, way in ways(args.python, model).items():
            if not args.only or name in args.only:
                results[name] = play(name, way, cycles=args.cycles)
    finally:
        say(json.dumps(results, indent=1))
        if args.json:
            args.json.write_text(json.dumps(results, indent=1))
    return 0 if all("error" not in way for way in results.values() if isinstance(way, dict)) else 1


if __name__ == "__main__":
    sys.exit(main())
