"""`LlamaRouter`: its settings and preset, and its life on a fake that misbehaves as the real router does."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import anyio
import httpx
import pytest

from hooks.warmup import Ping, Text
from supervisor import Child, Hooks, Liveness, Restart, State, Stop, Supervised, Timeouts, events, supervise
from supervisor.engines.llama_cpp import LlamaRouter, RouterModel
from supervisor.engines.llama_cpp.preset import WritePreset, preset_path
from supervisor.errors import ChildUnresponsive, ProfileError, StepFailed, UnsupportedFlag, WrongModel
from supervisor.redact import Secret
from support import TESTS, Recorder, alive, is_in, until_async

FAKE = (sys.executable, "-I", "-S", str(TESTS / "fakes" / "fake_router.py"))
X: dict[str, Any] = {"name": "x", "model": Path("x.gguf")}
QUICK = Liveness(period_s=0.05, misses=2, inference_every_s=30)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def model(tmp_path: Path, name: str, **settings: Any) -> RouterModel:
    path = tmp_path / f"{name}.gguf"
    path.write_bytes(b"GGUF")
    return RouterModel(name=name, model=path, **settings)


def router(tmp_path: Path, **settings: Any) -> LlamaRouter:
    defaults: dict[str, Any] = {
        "binary": FAKE,
        "models": (model(tmp_path, "sea"), model(tmp_path, "hill")),
        "must_load": ("sea",),
        "timeouts": Timeouts(start_s=30, probe_s=5, step_s=20),
        "stop": Stop(grace_s=5),
        "liveness": QUICK,
    }
    return LlamaRouter(**(defaults | settings))


def known(*faults: str) -> frozenset[str]:
    """What the fake knows, with faults, which its help does not list."""
    flags = "host port models-preset models-dir models-max no-models-autoload metrics sleep-idle-seconds model mmproj"
    return frozenset(
        f"--{flag}" for flag in (*flags.split(), "ctx-size", "parallel", "cache-ram", "load-mode", *faults)
    )


async def state_of(server: Supervised, name: str) -> str:
    async with httpx.AsyncClient(base_url=server.child.url) as client:
        entries = (await client.get("/models")).json()["data"]
    return str(next(entry["status"]["value"] for entry in entries if entry["id"] == name))


def process_of(server: Supervised, name: str) -> int:
    """The process that serves one model."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            of_ours = int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == server.child.pid
            if of_ours and name.encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                return int(entry.name)
    raise AssertionError(f"no process serves {name}")


# ------------------------------------------------------------------------------------------------------------ settings


def test_the_preset_and_the_command(tmp_path: Path) -> None:
    """Each model's settings stand in its section, and what must be loaded is loaded at the start."""
    built = router(tmp_path, models_max=2, autoload=False, sleep_idle_s=300, api_key=Secret("k" * 8), liveness=None)
    (step,) = built.hooks().before_start
    text = step.text  # type: ignore[attr-defined]
    sea, hill = text.split("[hill]")
    own = ["ctx-size = 4096", "parallel = 1", "cache-ram = 0", "load-mode = none", "load-on-startup = true"]
    assert sea == "\n".join(["version = 1", "", "[sea]", f"model = {tmp_path}/sea.gguf", *own, "", ""])
    assert "load-on-startup" not in hill
    profile = built.profile()
    flags = profile.command[len(FAKE) :]
    assert flags == (
        *("--host", "{host}", "--port", "{port}", "--models-preset", str(preset_path(text)), "--models-max", "2"),
        *("--no-models-autoload", "--metrics", "--sleep-idle-seconds", "300"),
    )
    assert (profile.health.model_id, profile.health.must_load) == ("sea", ("sea",))
    assert profile.weights == (tmp_path / "sea.gguf",)
    assert profile.liveness.inference_every_s == 600
    assert profile.api_key_env == "LLAMA_API_KEY"


def test_an_older_build(tmp_path: Path) -> None:
    """A build without --load-mode is told --no-mmap; one without a prompt cache gets no flag for it."""
    old = known("no-mmap") - {"--load-mode", "--cache-ram"}
    (step,) = router(tmp_path).hooks(old).before_start
    assert "no-mmap = true\n" in step.text  # type: ignore[attr-defined]
    assert "cache-ram" not in step.text  # type: ignore[attr-defined]
    with pytest.raises(UnsupportedFlag, match="needs --models-preset"):
        router(tmp_path).profile(old - {"--models-preset"})


def test_the_users_preset(tmp_path: Path) -> None:
    """A copy of the user's file is used; what must be loaded is marked in it, and nothing else changed."""
    text = "; mine\n[*]\nc = 512\n\n[ sea ] ; the first\nmodel = /m/sea.gguf # here\n[hill]\nmodel = /m/hill.gguf\n"
    (tmp_path / "mine.ini").write_text(text)
    built = router(tmp_path, models=(), preset=tmp_path / "mine.ini")
    (step,) = built.hooks(known("c")).before_start
    marked = text.replace("; the first\n", "; the first\nload-on-startup = true\n")
    assert step.text == marked  # type: ignore[attr-defined]
    assert built.profile(known() | {"-c"}).weights == (Path("/m/sea.gguf"),)


def test_a_folder(tmp_path: Path) -> None:
    """A folder's models go by the names of their files; a preset marks what must be loaded."""
    model(tmp_path, "sea")
    built = router(tmp_path, models=(), models_dir=tmp_path)
    (step,) = built.hooks().before_start
    assert step.text == "version = 1\n\n[sea]\nload-on-startup = true\n"  # type: ignore[attr-defined]
    assert built.profile().weights == (tmp_path / "sea.gguf",)
    assert router(tmp_path, models=(), models_dir=tmp_path, must_load=()).hooks() == Hooks()


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"must_load": ("lake",)}, "must_load='lake' is not valid: it must be one of sea, hill"),
    ({"must_load": ("sea", "sea")}, "must_load='sea' .* there once"),
    ({"must_load": ("sea", "hill"), "models_max": 1}, "models_max=1 .* at least 2, for all of must_load"),
    ({"models_max": 0}, "models_max=0 .* at least 1, for all of must_load"),
    ({"models": ()}, "models=.* at least one, unless models_dir or preset is given"),
    ({"preset": Path("x.ini")}, "preset=.* None when models are given"),
    ({"sleep_idle_s": 0}, "sleep_idle_s=0"),
    ({"sleep_idle_s": 9, "metrics": False}, "metrics=False .* True when sleep_idle_s is set"),
    ({"extra_args": ("--model", "x")}, "extra_args='--model' .* free of --model"),
    ({"env": {"LLAMA_ARG_MODELS_MAX": "1"}}, r"free of LLAMA_ARG_\* variables"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG)
def test_wrong_settings(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    """Each is one error, at construction, that names field, value and what is allowed."""
    with pytest.raises(ProfileError, match=message):
        router(tmp_path, **settings)


def test_two_models_of_one_name(tmp_path: Path) -> None:
    """A name that two models have is refused: the later would win."""
    with pytest.raises(ProfileError, match=r"models='sea' .* a name that one model has"):
        router(tmp_path, models=(model(tmp_path, "sea"), model(tmp_path, "sea")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "a]b"}, "model.name='a]b'"),
        ({"name": "default"}, "model.name='default'"),
        ({"model": Path("a;b.gguf")}, "without ; # and line breaks"),
        ({"more": {"ctx-size": "1"}}, "more='ctx-size' .* there is no setting"),
        ({"more": {"port": "1"}}, "more='port' .* there is no setting"),
        ({"more": {"--jinja": "true"}}, "more='--jinja' .* without its dashes"),
        ({"ctx_size": 0}, "x.ctx_size=0"),
    ],
)
def test_wrong_models(settings: dict[str, Any], message: str) -> None:
    """What a preset cannot hold, or what would be lost in it without a word, is refused."""
    with pytest.raises(ProfileError, match=message):
        RouterModel(**{**X, **settings})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "preset=.*mine.ini.* a file that can be read"),
        ("[sea]\nmodel = a\n[sea]\nmodel = b\n", "line 3='sea' .* of two, the later wins silently"),
        ("[sea]\nnonsense\n", "line 2='nonsense' .* a key = value"),
        ("[sea]\nmodle = a\n", r"\[sea\]='modle' .* a flag of this llama-server"),
        ("[hill]\nmodel = a\n", "must_load='sea' .* one of hill"),
        ("[sea]\nmodel = a\nload-on-startup = off\n", "load-on-startup='off' .* because it is in must_load"),
    ],
)
def test_wrong_presets(tmp_path: Path, text: str | None, message: str) -> None:
    """Each mistake in the user's preset is one error before anything starts, with file and line where there is one."""
    if text is not None:
        (tmp_path / "mine.ini").write_text(text)
    with pytest.raises(ProfileError, match=message):
        router(tmp_path, models=(), preset=tmp_path / "mine.ini").profile()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    """It is named before anything starts."""
    with pytest.raises(ProfileError, match=r"models_dir=.*nowhere.* a folder that is there"):
        router(tmp_path, models=(), models_dir=tmp_path / "nowhere").profile()


# ---------------------------------------------------------------------------------------------------------------- life


@pytest.mark.anyio
async def test_it_is_ready_once_its_models_are(tmp_path: Path) -> None:
    """READY waits for the models that must be loaded; another is loaded by the warmup that names it, and all end."""
    recorder = Recorder()
    settings = router(tmp_path, api_key=Secret("sk-tests-only"))
    hooks = settings.hooks() + Hooks(warmup=(Text(), Text(name="hill", model="hill")), observers=(recorder,))
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tg:
            server = await tg.start(supervise, settings.profile(), hooks)
            async with server.child.client() as client:
                entries = (await client.get("/models")).json()["data"]
            pids = [process_of(server, name) for name in ("sea", "hill")]
            tg.cancel_scope.cancel()
    assert {entry["id"]: entry["status"]["value"] for entry in entries} == {"sea": "loaded", "hill": "loaded"}
    assert [event.step for event in recorder.of(events.WarmupPassed)] == ["text", "hill"]
    assert not any(map(alive, pids))
    assert any(line.startswith("[") and "model loaded" in line for line in recorder.lines())


@pytest.mark.anyio
async def test_a_model_that_fails_to_load(tmp_path: Path) -> None:
    """It ends the wait at once, though /health is green, and its own last lines are in the error."""
    models = (model(tmp_path, "sea", more={"exit-while-loading": "7"}),)
    settings = router(tmp_path, models=models)
    flags = known("exit-while-loading")
    with pytest.raises(WrongModel, match=r"'sea': it is failed \(its process exited with code 1\)") as caught:
        await supervise(settings.profile(flags), settings.hooks(flags))
    assert "failed to load model, as planned" in "\n".join(caught.value.tail)


@pytest.mark.anyio
async def test_a_model_file_that_is_not_there(tmp_path: Path) -> None:
    """It is named before the router starts."""
    settings = router(tmp_path)
    (tmp_path / "hill.gguf").unlink()
    with pytest.raises(StepFailed, match=r"'write-preset' .*the model 'hill': there is no file .*hill"):
        await supervise(settings.profile(), settings.hooks())


@pytest.mark.anyio
async def test_a_model_that_the_router_does_not_know(tmp_path: Path) -> None:
    """A name that cannot be checked earlier, because it may be in llama.cpp's cache, ends the wait at once."""
    settings = router(tmp_path, models=(), models_dir=tmp_path, must_load=("org/repo",))
    profile = settings.profile()
    with pytest.raises(WrongModel, match="'org/repo': it knows 'hill', 'lake', 'sea'"):
        (tmp_path / "lake.gguf").write_bytes(b"GGUF")
        at = profile.command.index("--models-preset")  # left out, because the fake knows no cache
        await supervise(replace(profile, command=(*profile.command[:at], *profile.command[at + 2 :])))


@pytest.mark.anyio
async def test_a_needed_model_that_crashes_is_replaced_with_the_router(tmp_path: Path) -> None:
    """Its crash is said with the exit code; without a request that loads it again, the whole life is replaced."""
    recorder = Recorder()
    settings = router(tmp_path, restart=Restart(policy="on-failure", backoff_s=0.01))
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tg:
            hooks = settings.hooks() + Hooks(observers=(recorder,))
            server = await tg.start(supervise, settings.profile(), hooks)
            os.kill(process_of(server, "sea"), signal.SIGKILL)
            await until_async(lambda: len(recorder.of(events.ChildReady)) == 2)
            assert await state_of(server, "sea") == "loaded"
            tg.cancel_scope.cancel()
    said = recorder.one(events.ChildUnresponsive).detail
    assert said == "the model 'sea' must be loaded: it is failed (its process exited with code 1)"


@pytest.mark.anyio
async def test_models_that_may_be_gone(tmp_path: Path) -> None:
    """A crash of a model that need not be loaded and an eviction of one that must are states: a request mends them."""
    settings = router(tmp_path, models_max=1)
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tg:
            server = await tg.start(supervise, settings.profile(), settings.hooks())
            async with httpx.AsyncClient(base_url=server.child.url, timeout=20) as client:
                body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
                assert (await client.post("/v1/chat/completions", json={**body, "model": "hill"})).status_code == 200
                assert await state_of(server, "sea") == "unloaded"  # models_max evicted it
                os.kill(process_of(server, "hill"), signal.SIGKILL)
                await anyio.sleep(10 * QUICK.period_s)  # more checks than would be too many misses
                assert is_in(server, State.READY)
                assert (await client.post("/v1/chat/completions", json={**body, "model": "sea"})).status_code == 200
                assert await state_of(server, "sea") == "loaded"
            tg.cancel_scope.cancel()


@pytest.mark.anyio
async def test_an_evicted_model_that_no_request_loads(tmp_path: Path) -> None:
    """Without autoload, a model that must be loaded and is unloaded stays away: the watchdog says so and gives up."""
    settings = router(tmp_path, autoload=False)
    with pytest.raises(ChildUnresponsive, match="the model 'sea' must be loaded: it is unloaded"), anyio.fail_after(30):
        async with anyio.create_task_group() as tg:
            run: list[BaseException] = []

            async def watched(task_status: Any) -> None:
                try:
                    await supervise(settings.profile(), settings.hooks(), task_status=task_status)
                except ChildUnresponsive as error:
                    run.append(error)

            server = await tg.start(lambda *, task_status: watched(task_status))
            async with httpx.AsyncClient(base_url=server.child.url, timeout=20) as client:
                await client.post("/models/unload", json={"model": "sea"})
            await until_async(lambda: bool(run))
        raise run[0]


@pytest.mark.anyio
async def test_liveness_wakes_no_model(tmp_path: Path) -> None:
    """All models asleep is an event; the watchdog's inference is left out for a model that sleeps."""
    recorder = Recorder()
    models = tuple(model(tmp_path, name, more={"sleep-idle-seconds": "0.1"}) for name in ("sea", "hill"))
    settings = router(tmp_path, models=models, liveness=Liveness(period_s=0.05, misses=2, inference_every_s=0.2))
    flags = known()
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tg:
            hooks = settings.hooks(flags) + Hooks(liveness=(Ping(),), observers=(recorder,))
            server = await tg.start(supervise, settings.profile(flags), hooks)
            await until_async(lambda: bool(recorder.of(events.EngineAsleep)))
            await Ping()(server.child)  # asks nothing
            assert await state_of(server, "sea") == "sleeping"
            tg.cancel_scope.cancel()
    assert not recorder.of(events.EngineAwake)


@pytest.mark.anyio
async def test_a_preset_is_ours_alone(tmp_path: Path) -> None:
    """A preset of the user's may hold tokens, so that nobody else may read our copy."""
    path = tmp_path / "presets" / "p.ini"
    umask = os.umask(0)
    try:
        await WritePreset(path=path, text="[a]\nhf-token = made-up\n")(cast("Child", None))
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o077 == 0
