"""Faults of GPU memory that is put aside while the server is sealed, on a CUDA driver without a GPU (`fakes/cuda`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from fakes.cuda.build import build_below
from hooks.sleep import GpuMemory
from hooks.sleep.folder import VARIABLE
from hooks.warmup import Text
from supervisor import Hooks
from system.faults.fault import Fault
from system.faults.settings import HEAL

LIBRARY: Final = "libwarmboot_gpu.so"


def cuda(tmp: Path) -> None:
    """Driver and library, built once for all rows, at a place of the row's own."""
    (tmp / "cuda").symlink_to(build_below(tmp.parent).folder)
    (tmp / "broken.so").write_text("no library")


def offloads(tmp: Path) -> Hooks:
    memory = GpuMemory(threads=2, idle_s=0.2, library=tmp / "cuda" / LIBRARY)
    return Hooks(warmup=(Text(),), after_resume=(Text(),)) + memory.hooks()


def setting(library: str = f"cuda/{LIBRARY}", *, heal: bool = False, **driver: str) -> dict[str, Any]:
    """What `GpuMemory.profile` makes, with faults of the driver's."""
    faults = {f"FAKE_CUDA_{name}": value for name, value in driver.items()}
    preload = {"LD_PRELOAD": f"{{tmp}}/{library}", VARIABLE: "{tmp}/sockets", "LD_LIBRARY_PATH": "{tmp}/cuda"}
    return {
        "flags": ("--gpu-engine", "{tmp}/cuda/libengine.so"),
        "profile": {"env": {**preload, **faults}, **({"restart": HEAL} if heal else {})},
        "hooks": offloads,
        "prepare": cuda,
    }


# fmt: off
GPU_MEMORY: tuple[Fault, ...] = (
    Fault(
        name="gpu-library", fault="GPU memory: the library that puts it aside cannot be loaded", moment="before spawn",
        outcome="recovered", proof="the library cannot be loaded", **setting("broken.so"),
    ),
    Fault(
        name="gpu-busy", fault="GPU memory: the GPU does not become idle", moment="sealed", outcome="refused",
        error="StepFailed", says="the GPU is not idle", **setting(SYNC_HANG="1+"),
    ),
    Fault(
        name="gpu-driver", fault="GPU memory: the driver refuses to copy it out", moment="sealed", outcome="recovered",
        proof="GPU memory is left to the platform", **setting(STREAM="1+"),
    ),
    Fault(
        name="gpu-flipped", fault="GPU memory: a bit of what was put aside flips", moment="sealed", outcome="failed",
        error="StepFailed", status=4, says="came back damaged", act="flip", **setting(),
    ),
    Fault(
        name="gpu-flipped-heal", fault="the same, a resume may replace it", moment="sealed", outcome="recovered",
        act="flip", lives=2, **setting(heal=True),
    ),
    Fault(
        name="gpu-full-heal", fault="GPU memory: the GPU is too full at the reload, a resume may replace the server",
        moment="sealed", outcome="recovered", lives=2, **setting(heal=True, CREATE="5+"),
    ),
    Fault(
        name="gpu-killed-heal", fault="GPU memory: SIGKILL while it is away, a resume may replace the server",
        moment="sealed", outcome="recovered", act="kill", lives=2, **setting(heal=True),
    ),
    Fault(
        name="gpu-stop", fault="GPU memory: a stop while it is away", moment="sealed", outcome="stopped", act="stop",
        **setting(),
    ),
)
# fmt: on
