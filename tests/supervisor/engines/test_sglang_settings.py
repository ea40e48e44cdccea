"""Sglang: settings, a YAML file and a binary's own --help in, a Profile out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from supervisor.engines import catalogue
from supervisor.engines.base import PlainServer
from supervisor.engines.help_flags import listed
from supervisor.engines.sglang import SGLANG, Sglang
from supervisor.engines.sglang.dialect import QUICK_CRASH, QUIET_HEALTH, VITAL
from supervisor.engines.sglang.flags import OWNED
from supervisor.engines.sglang.private import ADMIN_KEY, path_in
from supervisor.engines.sglang.server import LOOP_FOLDER, STOP
from supervisor.errors import ProfileError, UnsupportedFlag
from supervisor.profile import Liveness, Stop
from supervisor.redact import MASK, Secret
from support import TESTS

KNOWN = listed((TESTS / "testdata" / "sglang" / "help.txt").read_text(encoding="utf-8"))
KEY = Secret("sk-tests-only-1234")


def settings(**more: Any) -> Sglang:
    return Sglang(**{"model": "/models/qwen", "binary": ("/opt/sglang/bin/sglang", "serve"), **more})


def with_config(folder: Path, text: str, **more: Any) -> Sglang:
    file = folder / "seed.yaml"
    file.write_text(text, encoding="utf-8")
    return settings(config=file, **more)


def test_every_flag_of_a_setting_is_in_the_real_help() -> None:
    """SGLang 0.5.23 lists each flag that a setting uses."""
    assert {flags.split()[0] for flags in OWNED.values()} | {"--enable-weights-cpu-backup"} <= KNOWN
    assert len(KNOWN) > 400


def test_full_command_line() -> None:
    """Every setting reaches the command line once, and no key does."""
    server = settings(
        served_name="qwen",
        tp_size=2,
        dp_size=1,
        context_length=4096,
        mem_fraction_static=0.8,
        dtype="bfloat16",
        load_format="dummy",
        memory_saver=True,
        api_key=KEY,
        admin_key=Secret("sk-admin-5678"),
        extra_args=("--reasoning-parser", "qwen3", "--random-seed=-1"),
    )
    wanted = (
        "/opt/sglang/bin/sglang serve --model-path /models/qwen --served-model-name qwen --host {host} --port {port} "
        "--tp-size 2 --dp-size 1 --context-length 4096 --mem-fraction-static 0.8 --dtype bfloat16 --load-format dummy "
        "--enable-metrics --enable-memory-saver --enable-weights-cpu-backup --reasoning-parser qwen3 --random-seed=-1 "
        "--config"
    )
    profile = server.profile(KNOWN)
    assert list(profile.command[:-1]) == wanted.split()
    assert path_in(profile.command).suffix == ".yaml"
    assert not any("sk-" in word for word in profile.command)


def test_defaults_of_the_profile() -> None:
    """The profile knows SGLang's ready line, processes, counters, stop and a health that computes nothing."""
    profile = settings(model="Qwen/Qwen3-8B", api_key=KEY).profile(KNOWN)
    assert (profile.name, profile.health.model_id, profile.health.path) == ("Qwen3-8B", "Qwen3-8B", "/health")
    assert (QUIET_HEALTH | QUICK_CRASH).items() <= profile.env.items()
    dumps = {"SGLANG_PYSPY_DUMP_BEFORE_CRASH": "1"}
    assert dumps.items() <= settings(env=dumps).profile(KNOWN).env.items()
    assert (profile.dialect, profile.vital, profile.api_key_env) == (SGLANG, VITAL, None)
    assert profile.stop == STOP == Stop(to="leader", grace_s=40)
    assert profile.liveness.counters_path == "/metrics"
    assert settings(metrics=False).profile(KNOWN).liveness == Liveness()


def test_weights_are_those_of_the_directory(tmp_path: Path) -> None:
    """Progress counts the weights' files; of weights that are not read there are none."""
    for name in ("model-00002-of-00002.safetensors", "model-00001-of-00002.safetensors", "config.json"):
        (tmp_path / name).touch()
    names = [path.name for path in settings(model=tmp_path).profile(KNOWN).weights]
    assert names == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert settings(model=tmp_path, load_format="dummy").profile(KNOWN).weights == ()
    assert settings(model="Qwen/Qwen3-8B").profile(KNOWN).weights == ()


def test_the_administration_has_a_key_of_its_own() -> None:
    """A key for the administration is made anew for each profile, and masked like the clients'; a given one is kept."""
    one, other = settings(api_key=KEY).profile(KNOWN), settings(api_key=KEY).profile(KNOWN)
    keys = {one.env[ADMIN_KEY], other.env[ADMIN_KEY], KEY}
    assert len({str(key) if isinstance(key, str) else key.reveal() for key in keys}) == 3
    assert {one.env[ADMIN_KEY], KEY} <= set(one.secrets)
    given = Secret("sk-admin-5678")
    assert settings(api_key=KEY, admin_key=given).profile(KNOWN).env[ADMIN_KEY] is given
    assert "sk-admin" not in repr(settings(api_key=KEY, admin_key=given))


def test_a_seed_of_yaml_passes_through(tmp_path: Path) -> None:
    """Keys that no setting owns are SGLang's own business."""
    seed = "tool-call-parser: qwen\nspeculative-algorithm: EAGLE\nspeculative-num-steps: 3\n"
    assert with_config(tmp_path, seed).profile(KNOWN).command.count("--config") == 1


@pytest.mark.parametrize(
    ("seed", "fields", "words"),
    [
        ("tp-size: 4", {"tp_size": 2}, "'tp-size', which belongs to the setting 'tp_size'"),
        ("tensor-parallel-size: 4", {"tp_size": 2}, "belongs to the setting 'tp_size'"),
        ("api-key: sk-1234", {}, "belongs to the setting 'api_key'"),
        ("admin-api-key: sk-1234", {}, "belongs to the setting 'admin_key'"),
        ("enable-memory-saver: true", {}, "belongs to the setting 'memory_saver'"),
        ("enable_metrics: true", {}, "belongs to the setting 'metrics'"),
        ("port: 30000", {}, "belongs to the setting 'port'"),
        ("config: other.yaml", {}, "belongs to the setting 'config'"),
        ("tokenizer-worker-num: 2", {}, "SGLang asks for no key at all"),
        ("grpc-port: 1", {}, "its listener asks for no key"),
        ("ssl-certfile: a.pem", {}, "probes ask"),
        ("no-such-flag: 1", {}, "--no-such-flag"),
        ("tool_call_parser: qwen", {}, "--tool-call-parser"),
        ("{tp-size: 4}", {}, "one `key: value` a line"),
        ("tp-size: 4\ntp-size: 5", {}, "each key once"),
    ],
)
def test_a_conflict_with_the_yaml_is_refused(tmp_path: Path, seed: str, fields: dict[str, Any], words: str) -> None:
    """Of a key and a flag SGLang takes the flag without a word; here both are named. A key's value is shown nowhere."""
    with pytest.raises(ProfileError) as caught:
        with_config(tmp_path, seed, **fields).profile(KNOWN)
    assert words in str(caught.value)
    assert "sk-1234" not in str(caught.value)


def test_a_setting_that_is_left_alone_leaves_its_key_to_the_yaml(tmp_path: Path) -> None:
    """What is None here may stand there."""
    assert "--tp-size" not in with_config(tmp_path, "tp-size: 4\n").profile(KNOWN).command


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"model": " "}, "model"),
        ({"model": "-m"}, "model"),
        ({"served_name": "a:b"}, "served_name"),
        ({"tp_size": 0}, "tp_size"),
        ({"dp_size": True}, "dp_size"),
        ({"context_length": 1.5}, "context_length"),
        ({"mem_fraction_static": 1.0}, "mem_fraction_static"),
        ({"dtype": ""}, "dtype"),
        ({"config": "seed.json"}, "config"),
        ({"event_loop": "uvloop"}, "event_loop"),
        ({"api_key": "plain"}, "api_key"),
        ({"api_key": KEY, "admin_key": KEY}, "admin_key"),
        ({"api_key": Secret("-dash")}, "api_key"),
        ({"api_key": KEY, "admin_key": Secret("-dash")}, "admin_key"),
        ({"api_key": KEY, "open_access": True}, "open_access"),
        ({"memory_saver": True}, "api_key"),
        ({"memory_saver": True, "open_access": True}, "api_key"),
        ({"extra_args": ("--tp", "2")}, "extra_args"),
        ({"extra_args": ("--api-key=sk-1234",)}, "extra_args"),
        ({"extra_args": ("--tokenizer-worker-num", "2")}, "extra_args"),
        ({"extra_args": ("--skip-server-warmup",)}, "extra_args"),
        ({"env": {ADMIN_KEY: "x"}}, "env"),
        ({"env": {"SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "1"}}, "env"),
        ({"inherit_env": ("*",)}, "inherit_env"),
        ({"inherit_env": ("PYTHON*",)}, "inherit_env"),
        ({"binary": ()}, "binary"),
    ],
)
def test_a_wrong_setting_is_refused(fields: dict[str, Any], field: str) -> None:
    """A wrong setting is named, and a key is not shown."""
    with pytest.raises(ProfileError) as caught:
        settings(**fields)
    assert caught.value.field == field
    assert "sk-1234" not in str(caught.value)
    assert KEY.reveal() not in str(caught.value)


@pytest.mark.parametrize(
    ("missing", "fields"),
    [
        ("--admin-api-key", {}),
        ("--api-key", {}),
        ("--enable-weights-cpu-backup", {"api_key": KEY, "memory_saver": True}),
        ("--tp-size", {"tp_size": 2}),
        ("--reasoning-parser", {"extra_args": ("--reasoning-parser", "x")}),
    ],
)
def test_what_a_build_lacks_is_said(missing: str, fields: dict[str, Any]) -> None:
    """A flag that the binary's help does not list is an error before the start."""
    with pytest.raises(UnsupportedFlag, match=missing):
        settings(**fields).profile(KNOWN - {missing})


def test_an_abbreviation_is_refused() -> None:
    """argparse takes abbreviations, behind which a setting's flag could hide."""
    with pytest.raises(UnsupportedFlag, match="--mem-fraction"):
        settings(extra_args=("--mem-fraction", "0.5")).profile(KNOWN)


def test_asyncio_stands_in_for_uvloop() -> None:
    """With `event_loop="asyncio"` what SGLang imports as uvloop opens no io_uring; the user's own path stays."""
    env = settings(event_loop="asyncio", env={"PYTHONPATH": "/opt/mine"}).profile(KNOWN).env
    assert env["PYTHONPATH"] == f"{LOOP_FOLDER}:/opt/mine"
    assert env["USE_LIBUV"] == "0"  # of torch's store
    assert not {"PYTHONPATH", "USE_LIBUV"} & settings().profile(KNOWN).env.keys()
    program = (
        "import asyncio, uvloop; asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())\n"
        "async def loop(): return type(asyncio.get_running_loop()).__module__\n"
        "print(uvloop.run(loop()), uvloop.new_event_loop().close())"
    )
    clean = {"PYTHONPATH": str(LOOP_FOLDER)}
    said = subprocess.run((sys.executable, "-c", program), env=clean, check=True, capture_output=True, text=True)
    assert said.stdout.split() == ["asyncio.unix_events", "None"]


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (("sglang", "serve", "--model-path", "m"), "sglang"),
        (("nice", "/opt/sglang/bin/python", "-m", "sglang.launch_server", "--model-path", "m"), "sglang"),
        (("sglang", "generate"), "plain"),
        (("python", "-m", "sglang.bench_serving"), "plain"),
        (("./serve", "sglang"), "plain"),
    ],
)
def test_the_command_tells_the_engine(argv: tuple[str, ...], name: str) -> None:
    """A server of SGLang is known by its command."""
    assert catalogue.guess(argv).name == name


def test_a_bare_command_gets_what_the_engine_needs() -> None:
    """Stop, processes, quiet health and counters are filled in; what was chosen stays."""
    kind = catalogue.named("sglang")
    command = ("sglang", "serve", "--model-path", "m", "--port", "{port}", "--enable-metrics")
    profile = kind.adopt(PlainServer(command=command).profile())
    assert (profile.stop, profile.vital, profile.dialect) == (STOP, VITAL, SGLANG)
    assert (QUIET_HEALTH | QUICK_CRASH).items() <= profile.env.items()
    assert profile.liveness.counters_path == "/metrics"
    asked = {"SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "1"}
    assert kind.adopt(PlainServer(command=command, env=asked).profile()).env.items() >= asked.items()
    assert MASK not in str(profile.env)


def test_a_key_that_is_made_is_no_flag() -> None:
    """SGLang makes arguments of its YAML: a key of ours must not begin with a dash, as 1 in 64 random ones did."""
    made = {settings(api_key=KEY).profile(KNOWN).env[ADMIN_KEY] for _ in range(3)}
    assert len(made) == 3
    assert all(isinstance(key, Secret) and key.reveal().isalnum() for key in made)
