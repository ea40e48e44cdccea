"""`supervise gpu-memory build`, and what `--gpu-memory` makes of a profile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hooks.sleep import GpuMemory, Offload
from hooks.sleep.offload import build
from supervisor import Hooks, step
from supervisor.child import Child
from supervisor.cli import main
from supervisor.cli.command import of_command
from supervisor.cli.exec import exec_
from supervisor.cli.gpu_memory import offloading
from supervisor.cli.options import sealed_way
from supervisor.errors import ProfileError
from support import fake_profile


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def supervise_gpu_memory(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """`supervise gpu-memory ARGS`: exit code, stdout, stderr."""
    with pytest.raises(SystemExit) as ended:
        main(["gpu-memory", *args], prog_name="supervise")
    said = capsys.readouterr()
    return int(str(ended.value.code)), said.out, said.err


def of_exec(*options: str, command: tuple[str, ...]) -> tuple[Any, ...]:
    """The profile, hooks and notices that `exec` supervises with."""
    given = exec_.make_context("exec", [*options, "--", *command]).params
    profile, hooks, _ = of_command(given.pop("command"), given)
    return sealed_way(profile, hooks, given)


@pytest.mark.compiler
def test_the_library_is_built_where_it_is_wanted(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the cache, where `exec` finds it, or in a folder; the output says where, and what comes next."""
    status, out, err = supervise_gpu_memory(capsys, "build")
    library = build.find()
    assert library is not None
    assert library.is_relative_to(cache)
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == f"The library is {library}"
    assert "exec --gpu-memory offload" in out
    monkeypatch.setattr(build, "_compile", lambda _, beside: beside.write_bytes(library.read_bytes()))  # seconds less
    status, out, err = supervise_gpu_memory(capsys, "build", "--output", str(tmp_path / "here"))
    assert (status, err) == (0, "")
    assert f'GpuMemory(library=Path("{tmp_path}/here/{build.LIBRARY}"))' in out
    status, _, err = supervise_gpu_memory(capsys, "build", "--output", str(tmp_path / "not here"))
    assert (status, "LD_PRELOAD cannot name" in err) == (3, True)


def test_what_prevents_the_build_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No compiler, one that refuses, a folder that cannot be made: an exit code, the last words and a remedy each."""
    monkeypatch.setenv("CC", "no-such-compiler")
    status, _, err = supervise_gpu_memory(capsys, "build")
    assert (status, "there is no C compiler 'no-such-compiler': install one" in err) == (3, True)
    (compiler := tmp_path / "cc").write_text("#!/bin/sh\necho no such header; exit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    status, _, err = supervise_gpu_memory(capsys, "build")
    assert (status, "ended with code 1" in err, "no such header" in err) == (3, True, True)
    (tmp_path / "file").touch()
    status, _, err = supervise_gpu_memory(capsys, "build", "--output", str(tmp_path / "file" / "below"))
    assert (status, "--output=" in err, "a folder that can be written to" in err) == (2, True, True)


def test_a_server_starts_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that cannot be built is a notice with the reason; what is preloaded stays as it was."""
    monkeypatch.setenv("CC", "no-such-compiler")
    profile, hooks, (notice,) = of_exec("--gpu-memory", "offload", command=("server", "{port}"))
    assert "could not be built" in notice.detail
    assert "no-such-compiler" in notice.detail
    assert "LD_PRELOAD" not in profile.env
    assert hooks.sleep  # a sleep is refused in words, instead of being none


@pytest.mark.compiler
def test_offload_makes_the_golden_answers_its_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library is built if need be and preloaded, the memory goes last and comes back first, on this host."""
    monkeypatch.setattr(build, "_compile", lambda _, beside: beside.touch())
    options = ("--gpu-memory", "offload", "--golden", "text", "--contract")
    profile, hooks, notices = of_exec(*options, command=("server", "{port}"))
    assert notices == ()
    assert profile.env["LD_PRELOAD"] == str(build.find())
    assert [each.name for each in hooks.before_seal] == ["golden text record", "contract"]
    check, offload = hooks.sleep
    assert check.proof == hooks.after_resume
    assert isinstance(offload, Offload)
    assert not offload.for_snapshot


def test_without_the_option_nothing_changes() -> None:
    """The driver's way is the default, and no Step stands for it."""
    for options in ((), ("--gpu-memory", "driver")):
        _, hooks, notices = of_exec(*options, command=("server", "{port}"))
        assert (hooks, notices) == (Hooks(), ())


def test_one_way_to_sleep_excludes_the_other() -> None:
    """An engine's own sleep Steps, or the flag of its own sleep mode, refuse the option; a profile's own is kept."""

    async def doze(_: Child) -> None:
        pass

    profile, own = fake_profile(), Hooks(sleep=(step("doze", doze),))
    with pytest.raises(ProfileError, match=r"--gpu-memory='offload' .* a way to sleep of its own \(doze\)"):
        offloading(profile, own, "offload", proof=())
    assert offloading(profile, own, "driver", proof=()) == (profile, own, ())
    ours = GpuMemory().hooks()
    assert offloading(profile, ours, "offload", proof=()) == (profile, ours, ())
    with pytest.raises(ProfileError, match=r"--gpu-memory='driver' .*gpu memory offload"):
        offloading(profile, ours, "driver", proof=())
    for server in (
        ("vllm", "serve", "m", "--port", "{port}", "--enable-sleep-mode"),
        ("python", "-m", "sglang.launch_server", "--port", "{port}", "--enable-memory-saver"),
    ):
        with pytest.raises(ProfileError, match=rf"--gpu-memory='offload' .*with {server[-1]} .* leave that flag out"):
            of_exec("--gpu-memory", "offload", command=server)
