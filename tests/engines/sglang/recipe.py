"""SGLang 0.5.23 on the CPU, with a tiny Qwen3 of random weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from engines.environment import Environment
from engines.recipe import CHAT, LEADER, Recipe, Sleep
from supervisor import Hooks, Secret
from supervisor.dialect import Request
from supervisor.engines.base import Engine
from supervisor.engines.sglang import MemorySaver, Sglang

HERE: Final = Path(__file__).resolve().parent

# torchvision's compiled half fits no other torch than its own; imports need these names, and nothing calls them.
NAMES: Final = """
if not _has_ops():
    for _name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{_name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""
CPU: Final = (
    *("--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch"),
    *("--disable-overlap-schedule", "--max-total-tokens", "4096", "--sleep-on-idle"),
)


def _prepare(env: Environment) -> None:
    """Install the wheels whose dependencies are CUDA's, and the stubs."""
    env.install("--no-deps", "sglang==0.5.23", "transformers==5.19.0", "torchvision==0.29.2")
    packages = env.site_packages
    kernels = packages / "sgl_kernel"
    kernels.mkdir(exist_ok=True)
    shutil.copy(HERE / "kernels.py", kernels / "__init__.py")
    extension = packages / "torchvision" / "extension.py"
    text = extension.read_text(encoding="utf-8")
    extension.unlink()  # it may be a hard link into the installer's cache
    extension.write_text(text.replace(NAMES, "") + NAMES, encoding="utf-8")


def _engine(env: Environment, model: Path, key: Secret) -> Engine:
    config = env.folder / "sglang.yaml"
    config.write_text("tool-call-parser: qwen\nrandom-seed: 1\n", encoding="utf-8")
    return Sglang(
        model=model,
        binary=(str(env.python), "-m", "sglang.launch_server"),
        served_name="tiny",
        context_length=1024,
        mem_fraction_static=0.1,
        event_loop="asyncio",  # so that the contract is kept on bare Linux, where uvloop opens an io_uring
        config=config,
        api_key=key,
        env={"SGLANG_USE_CPU_ENGINE": "1", "HF_HUB_OFFLINE": "1"},
        extra_args=CPU,
    )


def _releases(_: Engine) -> Hooks:
    """The Steps of `Sglang(memory_saver=True)`, whose flags want CUDA: here the routes answer, and free nothing."""
    saver = MemorySaver()
    return Hooks(sleep=(saver.release,), wake=(saver.resume,))


RECIPE: Final = Recipe(
    name="sglang",
    package="sglang",
    requirements=HERE / "requirements.txt",
    prepare=_prepare,
    make_model=lambda env, folder: env.run(env.python, HERE / "model.py", folder),
    engine=_engine,
    processes={
        "scheduler": r"sglang::scheduler",
        "detokenizer": r"sglang::detokenizer",
        LEADER: LEADER,
    },
    hang=r"sglang::scheduler",
    sleeps=(Sleep(name="release and resume", hooks=_releases, healthy=200),),
    requests=(CHAT, Request(path="/v1/completions", body={"prompt": "The sea is", "max_tokens": 12})),
    start_s=400,
)
