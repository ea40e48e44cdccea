"""`GpuMemory`: what it makes of a profile, what it refuses, and what it does before a start."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from hooks.sleep import GpuMemory, Offload, Reload
from hooks.sleep.folder import VARIABLE
from hooks.sleep.offload import build
from hooks.sleep.steps import SelfCheck
from supervisor import Child, Profile, Redactor, Secret, events, step
from supervisor.engines.sglang.dialect import SGLANG
from supervisor.engines.vllm.dialect import VLLM
from supervisor.errors import ProfileError
from support import Recorder

LIBRARY = Path("/opt/ours/libwarmboot_gpu.so")


@pytest.fixture(autouse=True)
def no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing was built, the host preloads nothing, and folders are made here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    with tempfile.TemporaryDirectory(prefix="w", dir="/tmp") as short:
        monkeypatch.setattr(tempfile, "tempdir", short)
        yield
        monkeypatch.undo()


def profile(*command: str, **fields: Any) -> Profile:
    """Of any server."""
    return Profile(**{"name": "x", "command": ("server", *command), "port": 1, **fields})


def child_of(made: Profile, seen: Recorder) -> Child:
    """Before its start."""
    return Child(profile=made, port=0, pid=None, redact=Redactor(()), tell=seen)


# ------------------------------------------------------------------------------------------------ the profile


def test_the_library_is_preloaded_and_learns_its_folder() -> None:
    """Nothing else of the profile changes; each profile has a folder of its own, which is not made yet."""
    plain = profile(env={"A": "b"})
    one, two = (GpuMemory(library=LIBRARY).profile(plain) for _ in range(2))
    assert one.env["LD_PRELOAD"] == str(LIBRARY)
    assert one.env[VARIABLE] != two.env[VARIABLE]
    assert not Path(str(one.env[VARIABLE])).exists()
    assert replace(one, env={"A": "b"}) == plain


@pytest.mark.parametrize(
    ("own", "inherit", "joined"),
    [
        ({"LD_PRELOAD": "/a.so"}, ("*",), ["/a.so"]),
        ({"LD_PRELOAD": "/a.so:/b.so /c.so"}, ("*",), ["/a.so", "/b.so", "/c.so"]),
        ({"LD_PRELOAD": Secret("/a.so")}, ("*",), ["/a.so"]),
        ({"LD_PRELOAD": ""}, ("*",), []),
        ({}, ("LD_*",), ["/host.so"]),
        ({}, ("PATH",), []),
    ],
    ids=["own", "several", "secret", "emptied", "inherited", "not-inherited"],
)
def test_what_is_preloaded_anyway_stays(
    own: dict[str, Any], inherit: tuple[str, ...], joined: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours comes first; the host's counts only where the server would inherit it."""
    monkeypatch.setenv("LD_PRELOAD", "/host.so")
    made = GpuMemory(library=LIBRARY).profile(profile(env=own, inherit_env=inherit))
    assert str(made.env["LD_PRELOAD"]).split(":") == [str(LIBRARY), *joined]


def test_a_profile_that_was_made_twice_is_the_same() -> None:
    """The library stands there once, and the folder stays."""
    memory = GpuMemory(library=LIBRARY)
    once = memory.profile(profile())
    assert memory.profile(once) == once


def test_the_library_of_the_cache_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of `supervise gpu-memory build`, once it is there; without one the profile stays as it is."""
    assert GpuMemory().profile(profile()) == profile()
    built = build.build(cc=f"{sys.executable} {compiler(tmp_path)}")
    assert GpuMemory().profile(profile()).env["LD_PRELOAD"] == str(built)
    monkeypatch.setattr(build, "find", lambda: tmp_path / "with blank.so")
    assert GpuMemory().profile(profile()) == profile()


def compiler(folder: Path) -> Path:
    """One that writes an empty library."""
    path = folder / "cc.py"
    path.write_text("import sys; open(sys.argv[sys.argv.index('-o') + 1], 'w').close()")
    return path


@pytest.mark.parametrize(
    ("dialect", "flags"),
    [
        (VLLM, ("--tensor-parallel-size", "2")),
        (VLLM, ("--tensor_parallel_size=4",)),
        (VLLM, ("-tp", "8", "--disable-log-stats")),
        (SGLANG, ("--tp-size=2",)),
        (SGLANG, ("--tp", "2")),
        (SGLANG, ("--tensor-parallel-size", "2")),
    ],
)
def test_ranks_that_share_gpu_memory_are_refused(dialect: Any, flags: tuple[str, ...]) -> None:
    """CUDA IPC between tensor-parallel ranks cannot go together with it: the error names the flag that avoids it."""
    memory = GpuMemory(library=LIBRARY)
    with pytest.raises(ProfileError, match=r"gpu_memory='offload' .*'driver', because .*--disable-custom-all-reduce"):
        memory.profile(profile(*flags, dialect=dialect))
    memory.profile(profile(*flags, "--disable-custom-all-reduce", dialect=dialect))
    memory.profile(profile(*flags))  # of a server whose flags nobody knows


@pytest.mark.parametrize("flags", [(), ("--tensor-parallel-size", "1"), ("--tp", "x"), ("--tp-size",)])
def test_one_rank_is_not(flags: tuple[str, ...]) -> None:
    """Nor what is no number: the engine will say so itself."""
    for dialect in (VLLM, SGLANG):
        GpuMemory(library=LIBRARY).profile(profile(*flags, dialect=dialect))


@pytest.mark.parametrize("name", ["PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"])
def test_memory_that_torch_maps_itself_is_refused(name: str) -> None:
    """Expandable segments would escape the library: the error names the variable."""
    memory = GpuMemory(library=LIBRARY)
    with pytest.raises(ProfileError, match=rf"env\[{name}\]=.*without expandable_segments:True"):
        memory.profile(profile(env={name: "max_split_size_mb:512,expandable_segments:True"}))
    memory.profile(profile(env={name: "expandable_segments:False"}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("threads", -1),
        ("threads", 65),
        ("verify", 1),
        ("for_snapshot", None),
        ("idle_s", 0),
        ("tolerance_bytes", -1),
        ("deadline_s", -1),
        ("library", 7),
        ("proof", [step("x", anyio.sleep)]),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_setting_is_refused(field: str, value: Any) -> None:
    """At construction, by its name."""
    with pytest.raises(ProfileError, match="proof|Hooks" if field == "proof" else f"gpu_memory.{field}"):
        GpuMemory(**{field: value})


# ------------------------------------------------------------------------------------------------ the hooks


def test_the_steps_stand_where_the_order_needs_them() -> None:
    """The self-check before the offload, with all the settings; without it the offload alone."""
    proof = step("proof", anyio.sleep)  # type: ignore[arg-type]
    memory = GpuMemory(
        threads=4, verify=False, proof=(proof,), for_snapshot=False, idle_s=3, tolerance_bytes=5, deadline_s=60
    )
    hooks = memory.hooks()
    check, offload = hooks.sleep
    (reload,) = hooks.wake
    assert isinstance(check, SelfCheck) and isinstance(offload, Offload) and isinstance(reload, Reload)
    assert (check.proof, check.tolerance_bytes) == ((proof,), 5)
    for one in (check, offload, reload):
        assert (one.threads, one.verify, one.for_snapshot, one.idle_s, one.deadline_s) == (4, False, False, 3, 60)
        assert one.memory is offload.memory
    assert [one.name for one in GpuMemory(self_check=False).hooks().sleep] == ["gpu memory offload"]
    assert GpuMemory().hooks().sleep[1].memory is not offload.memory  # type: ignore[attr-defined]


@pytest.mark.anyio
async def test_the_folder_is_made_before_a_start_and_gone_after_it() -> None:
    """With a library that loads, nothing is said."""
    seen = Recorder()
    memory = GpuMemory(library=loadable())
    hooks = memory.hooks()
    child = child_of(memory.profile(profile()), seen)
    (prepare,) = hooks.before_start
    await prepare(child)
    folder = Path(child.env[VARIABLE])
    assert folder.is_dir() and seen.events == []
    (observe,) = hooks.observers
    observe(events.Stopped())
    assert not folder.exists()


def loadable() -> Path:
    """Some library that the loader takes."""
    maps = Path("/proc/self/maps").read_text().split()
    return next(Path(word) for word in maps if Path(word).name.startswith("libc.so") or "ld-musl" in word)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("library", "words"),
    [
        (Path("/missing/lib.so"), "cannot be loaded: there is no file /missing/lib.so"),
        (Path("/missing/with blank.so"), "LD_PRELOAD cannot name /missing/with blank.so"),
        (Path(__file__), "the library cannot be loaded"),
        (None, "supervise gpu-memory build"),
    ],
    ids=["missing", "blank", "no-library", "not-built"],
)
async def test_a_server_starts_without_the_library(library: Path | None, words: str) -> None:
    """What is wrong with it is a notice before the start, which goes on."""
    seen = Recorder()
    memory = GpuMemory(library=library)
    (prepare,) = memory.hooks().before_start
    await prepare(child_of(memory.profile(profile()), seen))
    assert words in seen.one(events.Notice).detail
    assert seen.one(events.Notice).detail.startswith("GPU memory cannot be put aside: ")


@pytest.mark.anyio
async def test_a_folder_that_cannot_be_made_is_a_notice(tmp_path: Path) -> None:
    """Such as below a file."""
    seen = Recorder()
    (tmp_path / "file").touch()
    memory = GpuMemory(library=loadable())
    made = memory.profile(profile(env={VARIABLE: str(tmp_path / "file" / "folder")}))
    (prepare,) = memory.hooks().before_start
    await prepare(child_of(made, seen))
    assert "its sockets have no folder" in seen.one(events.Notice).detail
