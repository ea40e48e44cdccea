"""CMake, as llama.cpp wants it: the architecture of a GPU, the options of a tree, the compilers that it found."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from modal_entry.pipeline.commands import which
from supervisor.errors import ProfileError

if TYPE_CHECKING:
    from pathlib import Path

    from modal_entry.pipeline.commands import Run

__all__ = ["architecture", "compiler", "configuration"]

# https://developer.nvidia.com/cuda-gpus, under the names that Modal takes.
_ARCHITECTURES: Final = {
    "T4": "75",
    "A100": "80",
    "A100-40GB": "80",
    "A100-80GB": "80",
    "A10": "86",
    "A10G": "86",
    "L4": "89",
    "L40S": "89",
    "H100": "90",
    "H200": "90",
    "B200": "100",
    "B300": "100",  # its own, 103, came with CUDA 12.9; code for 10.0 runs on 10.3
    "RTX-PRO-6000": "120",
}
# Not every tree has all of them; one that is not there is passed over. curl and OpenSSL are for downloads by the server
# itself, which never makes any here; the web UI would be fetched from the network in the middle of a build; NCCL is for
# several GPUs, is linked wherever a builder has it, and without libnccl.so.2 in the server's image the binary would not
# start.
_OFF: Final = (
    "GGML_CUDA_NCCL",
    "LLAMA_CURL",
    "LLAMA_OPENSSL",
    "LLAMA_BUILD_UI",
    "LLAMA_BUILD_WEBUI",
    "LLAMA_USE_PREBUILT_UI",
    "LLAMA_BUILD_EXAMPLES",
    "LLAMA_BUILD_APP",
)


def architecture(gpu: str) -> str:
    """CMake's number for a GPU's architecture: "89" for "L40S". A count (":2") and Modal's "!" are left aside.

    Raises:
        ProfileError: the name is not known.
    """
    try:
        return _ARCHITECTURES[gpu.partition(":")[0].rstrip("!").upper()]
    except KeyError:
        raise ProfileError(field="gpu", value=gpu, allowed=f"one of {', '.join(_ARCHITECTURES)}") from None


def configuration(tag: str, tree: Path, out: Path, cuda_arch: str | None, commit: str | None) -> list[str]:
    """The command that configures the tree; options that this tag does not have are ignored by CMake."""
    options = {
        "CMAKE_BUILD_TYPE": "Release",
        "BUILD_SHARED_LIBS": "OFF",  # one file; libraries that a tree makes all the same are found beside it:
        "CMAKE_BUILD_WITH_INSTALL_RPATH": "ON",
        "CMAKE_INSTALL_RPATH": "$ORIGIN",
        "CMAKE_RUNTIME_OUTPUT_DIRECTORY": str(out / "bin"),
        "CMAKE_LIBRARY_OUTPUT_DIRECTORY": str(out / "bin"),
        "GGML_NATIVE": "OFF",  # the builder's CPU is not the server's
        "LLAMA_BUILD_TESTS": "OFF",
        "GGML_CUDA": "ON" if cuda_arch else "OFF",
    }
    if cuda_arch:
        options["CMAKE_CUDA_ARCHITECTURES"] = cuda_arch
        # libcuda.so.1 comes with the driver, which a builder lacks; upstream's own image links like this.
        options["CMAKE_EXE_LINKER_FLAGS"] = "-Wl,--allow-shlib-undefined"
    options |= dict.fromkeys(_OFF, "OFF")
    if number := re.fullmatch(r"b(\d+)", tag):
        options["LLAMA_BUILD_NUMBER"] = number[1]  # upstream counts commits, of which a shallow clone has one
    if commit:
        options["LLAMA_BUILD_COMMIT"] = commit[:9]
    generator = ["-G", "Ninja"] if which("ninja") else []
    return [
        "cmake",
        "--no-warn-unused-cli",
        "-S",
        str(tree),
        "-B",
        str(out),
        *generator,
        *(f"-D{key}={value}" for key, value in options.items()),
    ]


def compiler(out: Path, languages: tuple[str, ...], run: Run) -> str | None:
    """The version line of the compiler that CMake chose for the first of `languages` that the tree uses."""
    cache = (out / "CMakeCache.txt").read_text(errors="replace")
    for language in languages:
        if found := re.search(rf"^CMAKE_{language}_COMPILER:\w+=(/.+)$", cache, re.MULTILINE):
            lines = run([found[1], "--version"], cwd=out).splitlines()
            return next((line for line in lines if "release" in line), lines[0] if lines else found[1])
    return None
