"""What a build is configured for: the architecture of a GPU, CUDA; and the commands that build."""

from __future__ import annotations

from pathlib import Path

import pytest

from modal_entry.pipeline.cmake import architecture, configuration
from modal_entry.pipeline.commands import CommandFailed, run_command
from supervisor.errors import ProfileError

pytestmark = pytest.mark.timeout(120)


def test_a_gpu_has_an_architecture() -> None:
    """Names as Modal takes them; an unknown one is an error that lists the known."""
    names = {"L40S": "89", "l4": "89", "H100!": "90", "H200:8": "90", "A10G": "86", "T4": "75", "A100-80GB": "80"}
    assert {name: architecture(name) for name in names} == names
    assert architecture("B300") == architecture("B200") == "100"  # nvcc 12.8, which the builder has, knows no 103
    with pytest.raises(ProfileError, match=r"gpu='V100' is not valid: it must be one of T4, .*L40S"):
        architecture("V100")


def test_a_cuda_configuration(tmp_path: Path) -> None:
    """The flags for a GPU build; options that come and go with tags are passed, and CMake does not mind."""
    argv = configuration("b9940", tmp_path, tmp_path / "out", "89", "0123456789abcdef")
    flags = dict(word[2:].split("=", 1) for word in argv if word.startswith("-D"))
    assert flags["GGML_CUDA"] == "ON" and flags["CMAKE_CUDA_ARCHITECTURES"] == "89"
    assert flags["GGML_NATIVE"] == flags["LLAMA_BUILD_TESTS"] == flags["BUILD_SHARED_LIBS"] == "OFF"
    assert flags["CMAKE_INSTALL_RPATH"] == "$ORIGIN"
    assert flags["LLAMA_BUILD_NUMBER"] == "9940" and flags["LLAMA_BUILD_COMMIT"] == "012345678"
    assert flags["LLAMA_BUILD_UI"] == flags["LLAMA_BUILD_WEBUI"] == flags["LLAMA_CURL"] == "OFF"
    assert flags["GGML_CUDA_NCCL"] == "OFF"  # or the binary asks for libnccl.so.2
    assert "--no-warn-unused-cli" in argv
    assert "LLAMA_BUILD_NUMBER=" not in " ".join(configuration("main", tmp_path, tmp_path / "out", None, None))


def test_a_command_that_is_missing_killed_or_noisy(tmp_path: Path) -> None:
    """Each way to fail has its own words; the last lines are kept whatever bytes they are."""
    with pytest.raises(CommandFailed, match=r"`no-such-tool --x` could not be started: there is no 'no-such-tool'"):
        run_command(["no-such-tool", "--x"], cwd=tmp_path)
    with pytest.raises(CommandFailed, match="was killed by SIGKILL") as caught:
        run_command(["sh", "-c", "kill -9 $$"], cwd=tmp_path)
    assert (caught.value.exit_code, caught.value.signal) == (None, "SIGKILL")
    with pytest.raises(CommandFailed, match="exited with code 3") as caught:
        run_command(["sh", "-c", r"seq 1000; printf 'a\377b\n' >&2; exit 3"], cwd=tmp_path)
    assert len(caught.value.tail) == 60 and caught.value.tail[-1] == "a\ufffdb"
