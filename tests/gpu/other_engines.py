"""Engines beside llama.cpp on a real GPU: cold start, sleep, the driver's checkpoint of the tree, wake, golden answer.

    PYTHONPATH=.:tests:tests/gpu python tests/gpu/other_engines.py vllm|sglang|images ROOT [--python P] [--json FILE]

Needs a machine with one NVIDIA GPU of 80 GB, driver 570 or later, `nvidia-smi`; P is the interpreter of the
engine's environment, with torch. No network. It writes a model of random weights below ROOT (Qwen3 8B in bf16, 16 GB;
FLUX.2-klein's real shapes, 36 GB), serves it by the engine's own settings, and prints for each way of leaving the GPU

- the cold start to READY, with every Step's seconds, and the GPU memory in use;
- per cycle (see `cycles`): seal (the engine's own sleep, or ours, included), lock, checkpoint, GPU memory in between,
  restore, unlock, resume (wake, health and golden answer included), and the next answer, in seconds; whether it came
  back to the last bit.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import driver
import library
from cycles import Way, play
from prints import say, timed

from supervisor import Secret
from supervisor.engines.vllm import Vllm

KEY: Final = Secret("sk-made-up-for-tests")


def vllm_engine(python: str, model: Path, *, more_env: Mapping[str, str] | None = None, **more: Any) -> Vllm:
    """vLLM with CUDA graphs on a part of a GPU of 140 GB."""
    return Vllm(
        model=model,
        binary=(python, "-m", "vllm.entrypoints.cli.main"),
        served_name="random",
        max_model_len=4096,
        gpu_memory_utilization=0.3,
        api_key=KEY,
        env={"HF_HUB_OFFLINE": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0"} | dict(more_env or {}),
        **more,
    )


def vllm(python: str, model: Path) -> dict[str, Way]:
    """vLLM with CUDA graphs: put aside by us, at both of its sleep levels, and as it is."""
    engine = partial(vllm_engine, python, model)
    return {
        "our offload": Way(engine=engine(), offload=True),
        "sleep level 1": Way(engine=engine(sleep=1)),
        "sleep level 2": Way(engine=engine(sleep=2)),
        "the driver alone": Way(engine=engine()),
    }


def sglang(python: str, model: Path) -> dict[str, Way]:
    """SGLang with graphs for decoding: put aside by us, with its memory saver, and as it is; without nvcc."""
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

    return {
        "our offload": Way(engine=engine(False), offload=True),
        "memory saver": Way(engine=engine(True)),
        "the driver alone": Way(engine=engine(False)),
    }


def images(python: str, model: Path) -> dict[str, Way]:
    """FLUX.2-klein by diffusers, 1024 x 1024 in 4 steps."""
    from supervisor.engines.images import Images

    engine = Images(python=python, model=model, served_name="random", api_key=KEY)
    return {"our offload": Way(engine=engine, offload=True), "the driver alone": Way(engine=engine)}


def made(root: Path, shapes: str, python: str) -> tuple[Path, float]:
    """The model's folder, written unless it is there, and the seconds that took."""
    model = root.resolve() / shapes
    if model.exists():
        return model, 0.0
    new = model.with_suffix(".new")
    script = Path(__file__).with_name("models.py")
    took_s = timed(lambda: subprocess.run([python, script, shapes, new], check=True))
    new.rename(model)
    return model, took_s


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
    results: dict[str, Any] = {"gpu": driver.describe(), "engine": args.engine}
    model, results["made_s"] = made(args.root, shapes, args.python)
    try:
        with tempfile.TemporaryDirectory(prefix="wb-gpu-") as folder:
            built = library.compiled(Path(folder))
            for name, way in ways(args.python, model).items():
                if not args.only or name in args.only:
                    results[name] = play(name, way, cycles=args.cycles, built=built)
    finally:
        say(json.dumps(results, indent=1))
        if args.json:
            args.json.write_text(json.dumps(results, indent=1))
    return 0 if all("error" not in way for way in results.values() if isinstance(way, dict)) else 1


if __name__ == "__main__":
    sys.exit(main())
