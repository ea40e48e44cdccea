"""Vllm: settings, a YAML file and a binary's own --help=all in, a Profile out."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from supervisor.engines.help_flags import listed
from supervisor.engines.vllm import VLLM, Vllm, parse_line
from supervisor.engines.vllm.closed_routes import GUARD, GUARD_FOLDER
from supervisor.engines.vllm.flags import OWNED, flag_of
from supervisor.engines.vllm.guard.warmboot_vllm_guard import ADMIN_KEY, OPEN_ACCESS
from supervisor.engines.vllm.server import LOOP_FOLDER, SNAPSHOT_ENV
from supervisor.errors import ProfileError, UnsupportedFlag
from supervisor.profile import Liveness, Stop
from supervisor.redact import Secret
from support import ROOT, TESTS

HELP = (TESTS / "testdata" / "vllm" / "help.txt").read_text(encoding="utf-8")
KNOWN = listed(HELP)
KEY = Secret("sk-tests-only-1234")


def settings(**more: Any) -> Vllm:
    return Vllm(**{"model": "/models/qwen", "binary": "/opt/vllm/bin/vllm", **more})


def value_of(command: tuple[str, ...], flag: str) -> str:
    """What follows a flag that stands there once."""
    assert command.count(flag) == 1
    return command[command.index(flag) + 1]


def test_every_flag_of_a_setting_is_in_the_real_help() -> None:
    """vLLM 0.32.0 lists each flag that a setting uses, and the middleware's."""
    assert {flags.split()[0] for flags in OWNED.values()} | {"--middleware", "-tp", "-pp"} <= KNOWN
    assert len(KNOWN) > 400


def test_full_command_line() -> None:
    """Every setting reaches the command line once, behind `serve` and the model; the guard stands last."""
    server = settings(
        served_name="qwen",
        tensor_parallel_size=2,
        pipeline_parallel_size=1,
        max_model_len=4096,
        max_num_seqs=8,
        gpu_memory_utilization=0.9,
        dtype="bfloat16",
        load_format="dummy",
        enforce_eager=True,
        sleep=1,
        shutdown_timeout_s=30,
        extra_args=("--reasoning-parser", "qwen3", "--hf_overrides.rope_theta=1e6", "-O1", "--middleware", "mine.Own"),
    )
    wanted = (
        "/opt/vllm/bin/vllm serve /models/qwen --host {host} --port {port} --served-model-name qwen "
        "--tensor-parallel-size 2 --pipeline-parallel-size 1 --max-model-len 4096 --max-num-seqs 8 "
        "--gpu-memory-utilization 0.9 --dtype bfloat16 --load-format dummy --shutdown-timeout 30 --enforce-eager "
        "--enable-sleep-mode --reasoning-parser qwen3 --hf_overrides.rope_theta=1e6 -O1 --middleware mine.Own "
        f"--middleware {GUARD}"
    )
    profile = server.profile(KNOWN)
    assert sorted(profile.command) == sorted(wanted.split())
    assert profile.command[:3] == ("/opt/vllm/bin/vllm", "serve", "/models/qwen")
    assert profile.command[-4:] == ("--middleware", "mine.Own", "--middleware", GUARD)
    assert profile.stop.grace_s == 50


def test_defaults_of_the_profile() -> None:
    """The profile knows vLLM's ready line, processes, counters and logs; the model's last part names everything."""
    profile = settings(model="Qwen/Qwen3-8B").profile(KNOWN)
    assert (profile.name, profile.health.model_id) == ("Qwen3-8B", "Qwen3-8B")
    assert value_of(profile.command, "--served-model-name") == "Qwen3-8B"
    assert (profile.dialect, profile.logs.parse, profile.api_key_env) == (VLLM, parse_line, "VLLM_API_KEY")
    assert profile.liveness.counters_path == "/metrics"
    assert any("EngineCore" in pattern for pattern in profile.vital)
    assert any("Worker" in pattern for pattern in profile.vital)
    assert profile.weights == ()
    for flag in ("--dtype", "--load-format", "--max-model-len", "--enable-sleep-mode", "--middleware"):
        assert flag not in profile.command


def test_parts_of_the_profile_can_be_given() -> None:
    """Given parts stay as they are; a server without statistics has no counters to look at."""
    profile = settings(stop=Stop(grace_s=3), liveness=Liveness(misses=9), name="prod").profile(KNOWN)
    assert (profile.stop.grace_s, profile.liveness.misses, profile.name) == (3, 9, "prod")
    mute = settings(extra_args=("--disable-log-stats",)).profile(KNOWN)
    assert mute.liveness.counters_path is None


def test_weights_are_every_safetensors_of_a_directory(tmp_path: Path) -> None:
    """Progress counts all shards of a model directory; a dummy load reads none."""
    for name in ("model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors", "config.json"):
        (tmp_path / name).write_bytes(b"x")
    weights = settings(model=tmp_path).profile(KNOWN).weights
    assert [path.name for path in weights] == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert settings(model=tmp_path, load_format="dummy").profile(KNOWN).weights == ()
    (tmp_path / "hub" / "models--a--b").mkdir(parents=True)
    (tmp_path / "hub" / "models--a--b" / "snapshots").symlink_to(tmp_path.parent)
    (tmp_path / "hub" / "models--a--b" / "refs").mkdir()
    (tmp_path / "hub" / "models--a--b" / "refs" / "main").write_text(tmp_path.name)
    hub = settings(model="a/b", env={"HF_HOME": str(tmp_path)})
    assert [path.name for path in hub.profile(KNOWN).weights] == [path.name for path in weights]
    assert replace(hub, extra_args=("--revision", "v2")).profile(KNOWN).weights == ()


def test_the_environment_suits_a_snapshot_unless_the_user_says_otherwise() -> None:
    """What the settings give wins over the defaults; neither our path nor our environment's reaches the child."""
    profile = settings(env={"NCCL_CUMEM_ENABLE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}).profile(KNOWN)
    assert profile.env["NCCL_CUMEM_ENABLE"] == "1"
    assert profile.env["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert profile.env["TORCHINDUCTOR_COMPILE_THREADS"] == SNAPSHOT_ENV["TORCHINDUCTOR_COMPILE_THREADS"] == "1"
    assert "PYTHONPATH" not in profile.env
    for name in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME", "VLLM_API_KEY", "VLLM_SERVER_DEV_MODE"):
        with pytest.raises(ProfileError, match=name):
            settings(inherit_env=("PATH", name[:6] + "*"))


def test_the_key_travels_in_the_environment() -> None:
    """The key stands in no argument; with it the guard is there, alone in its folder on the child's path."""
    profile = settings(api_key=KEY, env={"PYTHONPATH": "/opt/plugins"}).profile(KNOWN)
    assert not [word for word in profile.command if KEY.reveal() in word]
    assert value_of(profile.command, "--middleware") == GUARD
    assert profile.env["PYTHONPATH"] == f"{GUARD_FOLDER}{os.pathsep}/opt/plugins"
    assert [path.name for path in GUARD_FOLDER.iterdir() if path.name != "__pycache__"] == ["warmboot_vllm_guard.py"]
    assert (profile.env[OPEN_ACCESS], ADMIN_KEY in profile.env) == ("0", False)
    assert profile.env["VLLM_SERVER_DEV_MODE"] == "0"


def test_asyncio_instead_of_uvloop() -> None:
    """vLLM's `uvloop.run` runs asyncio's own loop where that is asked for, and opens no io_uring."""
    path = str(settings(event_loop="asyncio").profile(KNOWN).env["PYTHONPATH"])
    assert path == str(LOOP_FOLDER)
    assert [entry.name for entry in LOOP_FOLDER.iterdir() if entry.name != "__pycache__"] == ["uvloop.py"]
    both = settings(event_loop="asyncio", sleep=1, env={"PYTHONPATH": "/x"}).profile(KNOWN).env["PYTHONPATH"]
    assert both == os.pathsep.join((str(GUARD_FOLDER), path, "/x"))
    program = (
        "import asyncio, uvloop\nasync def loop(): return type(asyncio.get_running_loop())\nprint(uvloop.run(loop()))"
    )
    env = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run((sys.executable, "-S", "-c", program), env=env, check=True, capture_output=True, text=True)
    assert "asyncio.unix_events" in done.stdout


def test_sleep_makes_an_administration_with_a_key_of_its_own() -> None:
    """Development routes are open only where a guard with a fresh key stands before them."""
    server = settings(sleep=2, open_access=True)
    one, other = server.profile(KNOWN), server.profile(KNOWN)
    assert one.env["VLLM_SERVER_DEV_MODE"] == "1"
    assert isinstance(one.env[ADMIN_KEY], Secret)
    assert one.env[ADMIN_KEY] != other.env[ADMIN_KEY]
    assert one.env[OPEN_ACCESS] == "1"
    assert str(one.env[ADMIN_KEY]) not in repr(one).replace("***", "")
    hooks = server.hooks()
    assert [[step.name for step in point] for point in (hooks.warmup, hooks.sleep, hooks.wake)] == [
        ["vllm-closed-routes"],
        ["vllm-sleep"],
        ["vllm-wake"],
    ]
    assert not settings().hooks().warmup
    assert [step.name for step in settings(api_key=KEY).hooks().warmup] == ["vllm-closed-routes"]


@pytest.mark.parametrize(("given", "field"), [({"sleep": 1}, "sleep"), ({"api_key": KEY}, "api_key")])
def test_a_build_without_middleware_is_refused(given: dict[str, Any], field: str) -> None:
    """Where the guard cannot stand, neither a key nor sleep is promised."""
    with pytest.raises(UnsupportedFlag, match=rf"{field}=.* needs --middleware, which /opt/vllm/bin/vllm") as caught:
        settings(**given).profile(KNOWN - {"--middleware"})
    assert KEY.reveal() not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"model": ""}, "model"),
        ({"model": "--port"}, "model"),
        ({"served_name": " "}, "served_name"),
        ({"tensor_parallel_size": 0}, "tensor_parallel_size"),
        ({"max_model_len": True}, "max_model_len"),
        ({"gpu_memory_utilization": 1.1}, "gpu_memory_utilization"),
        ({"gpu_memory_utilization": 0}, "gpu_memory_utilization"),
        ({"dtype": ""}, "dtype"),
        ({"sleep": 3}, "sleep"),
        ({"event_loop": "uvloop"}, "event_loop"),
        ({"config": "x.json"}, "config"),
        ({"shutdown_timeout_s": -1}, "shutdown_timeout_s"),
        ({"api_key": "plain"}, "api_key"),
        ({"api_key": KEY, "open_access": True}, "open_access"),
        ({"env": {"VLLM_API_KEY": "x"}}, "env"),
        ({"env": {"VLLM_SERVER_DEV_MODE": "1"}}, "env"),
        ({"env": {ADMIN_KEY: "x"}}, "env"),
        ({"env": {"PYTHONPATH": f"/x:{ROOT}"}}, "PYTHONPATH"),
        ({"binary": ()}, "binary"),
    ],
)
def test_wrong_settings_are_named(given: dict[str, Any], field: str) -> None:
    """A wrong setting is refused at construction, by its name."""
    with pytest.raises(ProfileError, match=field) as caught:
        settings(**given)
    assert "plain" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--tensor-parallel-size", "2"), "use the setting 'tensor_parallel_size'"),
        (("-tp=2",), "use the setting 'tensor_parallel_size'"),
        (("--max_model_len=8",), "use the setting 'max_model_len'"),
        (("--api-key", "sk-x"), "use the setting 'api_key'"),
        (("--no-enable-sleep-mode",), "use the setting 'sleep'"),
        (("--ssl-keyfile", "x"), "probes ask http"),
    ],
)
def test_extra_arguments_leave_settings_alone(arguments: tuple[str, ...], words: str) -> None:
    """A flag of a setting is refused in each spelling that vLLM understands."""
    with pytest.raises(ProfileError, match=words) as caught:
        settings(extra_args=arguments)
    assert "sk-x" not in str(caught.value)


def test_extra_arguments_are_fitted_to_the_build() -> None:
    """What the help does not list is refused before the start, abbreviations among it, though vLLM would take them."""
    with pytest.raises(UnsupportedFlag, match="--tensor-parallel,"):
        settings(extra_args=("--tensor-parallel", "2")).profile(KNOWN)
    with pytest.raises(UnsupportedFlag, match="--reasoning-parser"):
        settings(extra_args=("--reasoning-parser", "x")).profile(KNOWN - {"--reasoning-parser"})
    with pytest.raises(UnsupportedFlag, match="max_num_seqs=2 needs --max-num-seqs"):
        settings(max_num_seqs=2).profile(KNOWN - {"--max-num-seqs"})


@pytest.mark.parametrize(
    ("argument", "flag"),
    [
        ("--max_model_len=4", "--max-model-len"),
        ("--hf-overrides.rope_scaling.factor", "--hf-overrides"),
        ("-cc.mode=3", "-cc"),
        ("-O3", "--optimization-level"),
        ("-0.5", None),
        ("value", None),
    ],
)
def test_flags_are_read_as_vllm_reads_them(argument: str, flag: str | None) -> None:
    """Underscores, dots, values behind an equals sign and the -O of compilers."""
    assert flag_of(argument) == flag


def test_the_flags_are_asked_of_the_binary(tmp_path: Path) -> None:
    """Without given flags `serve --help=all` of the binary is read."""
    binary = tmp_path / "vllm"
    text = shlex.quote(str(TESTS / "testdata" / "vllm" / "help.txt"))
    binary.write_text(f'#!/bin/sh\n[ "$*" = "serve --help=all" ] && cat {text}\n')
    binary.chmod(0o755)
    assert "--dtype" in settings(binary=binary, dtype="auto").profile().command


CONFIG = """\
# comment
max-model-len: 4096
speculative_config:
  method: ngram
  port: 9
lora-modules:
- a=b
"reasoning-parser": qwen3
"""


def test_a_config_is_merged(tmp_path: Path) -> None:
    """A YAML file is handed to vLLM where no key of it belongs to a setting that is given."""
    path = tmp_path / "vllm.yaml"
    path.write_text(CONFIG)
    command = settings(config=path, dtype="auto").profile(KNOWN).command
    assert value_of(command, "--config") == str(path)
    assert "--max-model-len" not in command


@pytest.mark.parametrize(
    ("text", "given", "words"),
    [
        (CONFIG, {"max_model_len": 8}, "'max-model-len'.*setting 'max_model_len'"),
        ("tensor_parallel_size: 2", {"tensor_parallel_size": 2}, "'tensor_parallel_size'.*'tensor_parallel_size'"),
        ("enforce-eager: true", {"enforce_eager": True}, "setting 'enforce_eager'"),
        ("port: 80", {}, "setting 'port'"),
        ("model: other", {}, "setting 'model'"),
        ("api-key: sk-x", {}, "setting 'api_key'"),
        ("enable-sleep-mode: true", {}, "setting 'sleep'"),
        ("served-model-name: [a, b]", {}, "setting 'served_name'"),
        ("ssl-keyfile: x", {}, "probes ask http"),
        ("max-model-length: 8", {}, "needs --max-model-length"),
        ("{port: 80}", {}, "one `key: value` a line"),
        ("? port\n: 80", {}, "one `key: value` a line"),
        ('"po\\x72t": 80', {}, "one `key: value` a line"),
        ("a: &x 1\n<<: *x", {}, "one `key: value` a line"),
        ("  dtype: auto\n port: 80", {}, "one `key: value` a line"),
        ("dtype: auto\ndtype: half", {}, "dtype stands there twice"),
        ("--- port: 80", {}, "one `key: value` a line"),
    ],
)
def test_a_conflict_with_a_config_is_refused(tmp_path: Path, text: str, given: dict[str, Any], words: str) -> None:
    """A key that a setting owns, that the build does not know, or that could hide another one, is refused by name."""
    path = tmp_path / "vllm.yaml"
    path.write_text(text)
    with pytest.raises(ProfileError, match=words) as caught:
        settings(config=path, **given).profile(KNOWN)
    assert str(path) in str(caught.value)
    assert "sk-x" not in str(caught.value)


def test_a_config_that_is_missing_is_named(tmp_path: Path) -> None:
    """A file that is not there is refused before vLLM takes its half minute to say so."""
    with pytest.raises(ProfileError, match="No such file"):
        settings(config=tmp_path / "gone.yaml").profile(KNOWN)
