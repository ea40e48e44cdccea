"""The image server's settings, and its dialect against what it really said before diffusers (tests/testdata/images)."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from supervisor.dialect import Reading
from supervisor.engines import catalogue
from supervisor.engines.images import IMAGES, PROGRAM, Images, accept, parse_line
from supervisor.engines.images.dialect import COUNTERS, READY
from supervisor.engines.images.server.options import MULTIPLE_PX, parse
from supervisor.errors import ProfileError
from supervisor.profile import Health, Profile, Stop
from supervisor.redact import Secret
from tools.transcripts import TESTDATA, Exchange, exchange

KEY = Secret("sk-made-up-for-tests")


def said(name: str) -> Exchange:
    return exchange("images", name)


def log(name: str) -> list[str]:
    return (TESTDATA / "images" / f"{name}.log").read_text(encoding="utf-8").splitlines()


def value(reading: Reading[Any] | None, name: str) -> Any:
    """What the dialect reads out of a captured answer of the route that it names."""
    assert reading
    answer = said(name)
    assert (answer.method, answer.path, answer.status) == ("GET", reading.path, 200)
    return reading.read(answer.body)


def images(**settings: Any) -> Images:
    return Images(**({"python": "python3", "model": "/models/klein"} | settings))


# ------------------------------------------------------------------------------------------------ what it says


def test_models_and_health() -> None:
    """The name that clients use is in the list, by its owner it is known; health names the stage while it loads."""
    assert value(IMAGES.models, "models") == ("tiny",)
    assert json.loads(said("models").body)["data"][0]["owned_by"] == IMAGES.owned_by
    assert said("models-refused").status == 401
    loading, up = said("health-loading"), said("health")
    assert (loading.status, up.status, accept(up.status, up.body)) == (503, 200, None)
    reason = accept(loading.status, loading.body)
    assert reason
    assert IMAGES.loading
    assert reason.startswith(f"{IMAGES.loading}: ")
    assert accept(200, "<html>") == "HTTP 200: <html>"
    assert accept(503, "") == "HTTP 503: empty body"


def test_counters() -> None:
    """Requests that run and wait are counted, images and steps grow from zero, and either changes the traffic."""
    (in_flight,) = IMAGES.requests
    assert [value(in_flight, name) for name in ("metrics-fresh", "metrics", "metrics-busy")] == [0, 0, 2]
    assert set(value(IMAGES.token_counters, "metrics-fresh").values()) == {0.0}
    assert value(IMAGES.token_counters, "metrics") == {"images_generated_total": 1, "images_steps_total": 4}
    traffic = [tuple(re.findall(COUNTERS, said(name).body)) for name in ("metrics-fresh", "metrics")]
    assert traffic[0] != traffic[1]
    assert in_flight.read("nothing") is None


def test_levels_of_its_log() -> None:
    """Lines of our own have their level; those of libraries are taken as they are; the ready line is the only one."""
    read = [parse_line(line) for line in log("engine")]
    assert Counter(level for level, _ in read) == {"info": len(read)}
    assert [text for _, text in read if re.search(READY, text)] == [
        "ready: serving tiny (Flux2KleinPipeline, float32 on cpu) on http://127.0.0.1:8188"
    ]
    assert sum(bool(re.search(READY, line)) for line in log("engine")) == 1
    level, text = parse_line(log("no-model")[-1])
    assert level == "error"
    assert text.startswith("the load failed at weights: ValueError: ")


def test_out_of_memory() -> None:
    """The words of a failed allocation are found in the log of a real one, and in no other log."""
    found = IMAGES.allocation_failure(log("out-of-memory"))
    assert found
    assert "can't allocate memory" in found
    assert json.loads(said("out-of-memory").body)["error"]["code"] == "out_of_memory"
    assert said("image-after").status == 200, "the server went on"
    assert IMAGES.allocation_failure([*log("engine"), *log("no-model")]) is None
    assert IMAGES.allocation_failure(["ERROR image 1: OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"])


# ------------------------------------------------------------------------------------------------ settings


def test_the_command_is_the_programs(tmp_path: Path) -> None:
    """Every setting reaches the server's own command line, and the program reads it back."""
    server = images(
        model=tmp_path,
        served_name="klein",
        dtype="float16",
        device="cuda:1",
        steps=8,
        guidance=2.5,
        size="512x768",
        max_side=1024,
        max_steps=50,
        max_images=2,
        max_queue=0,
        load={"variant": "fp16"},
        call={"layers": [1, 2], "text": "{port}"},
        stop=Stop(grace_s=20),
        pipeline="my.module:Pipeline",
        api_key=KEY,
    )
    profile = server.profile()
    assert profile.command[:2] == ("python3", str(PROGRAM))
    argv = [word.replace("{{port}}", "PORT").replace("{port}", "1234") for word in profile.command[2:]]
    options = parse([word.replace("{host}", "127.0.0.1").replace("PORT", "{port}") for word in argv], {})
    assert (options.model, options.name, options.pipeline) == (tmp_path, "klein", "my.module:Pipeline")
    assert (options.host, options.port, options.dtype, options.device) == ("127.0.0.1", 1234, "float16", "cuda:1")
    assert (options.steps, options.guidance, options.size) == (8, 2.5, (512, 768))
    assert (options.max_side, options.max_steps, options.max_images, options.max_queue) == (1024, 50, 2, 0)
    assert (options.load, options.call) == ({"variant": "fp16"}, {"layers": [1, 2], "text": "{port}"})
    assert options.grace_s == 16
    assert parse(["--model", "m"], {"IMAGES_API_KEY": "k"}).key == "k"
    assert MULTIPLE_PX == 16


def test_the_profile(tmp_path: Path) -> None:
    """The key travels in the environment, the hub is never asked, the weights are all safetensors of the folder."""
    for name in ("vae/b.safetensors", "unet/a.safetensors", "unet/config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    profile = images(model=tmp_path, api_key=KEY, served_name="klein").profile()
    assert KEY.reveal() not in str(profile.command)
    assert (profile.api_key_env, profile.env["HF_HUB_OFFLINE"]) == ("IMAGES_API_KEY", "1")
    assert [path.name for path in profile.weights] == ["a.safetensors", "b.safetensors"]
    assert profile.weights == profile.dialect.weight_files(tmp_path)
    assert (profile.health.model_id, profile.liveness.counters_path) == ("klein", "/metrics")
    assert not any(re.match("PYTHON|VIRTUAL", pattern) for pattern in profile.inherit_env)
    assert images().profile().weights == images(model=tmp_path / "vae" / "none").profile().weights == ()
    (tmp_path / "empty").mkdir()
    assert images(model=tmp_path / "empty").profile().weights == ()
    assert "HF_HUB_OFFLINE" not in images(offline=False).profile().env


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"python": ()}, "python"),
        ({"model": "/"}, "model"),
        ({"pipeline": "a b"}, "pipeline"),
        ({"served_name": " "}, "served_name"),
        ({"dtype": ""}, "dtype"),
        ({"device": "cuda 1"}, "device"),
        ({"steps": 0}, "steps"),
        ({"steps": 101}, "steps"),
        ({"max_queue": -1}, "max_queue"),
        ({"max_side": None}, "max_side"),
        ({"guidance": float("nan")}, "guidance"),
        ({"guidance": True}, "guidance"),
        ({"size": "1000x1000"}, "size"),
        ({"size": "4096x16"}, "size"),
        ({"size": "big"}, "size"),
        ({"load": {"dtype": object()}}, "load"),
        ({"call": [1]}, "call"),
        ({"api_key": "plain"}, "api_key"),
        ({"api_key": KEY, "open_access": True}, "open_access"),
        ({"env": {"IMAGES_API_KEY": "k"}}, "env"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_setting_names_itself(settings: dict[str, Any], words: str) -> None:
    """At construction, with the value unless it may be a key."""
    with pytest.raises(ProfileError, match=words) as caught:
        images(**settings)
    assert "plain" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ a bare command


@pytest.mark.parametrize(
    ("argv", "ours"),
    [
        (("python3", str(PROGRAM), "--model", "m"), True),
        (("/env/bin/python", "-P", "/site-packages/supervisor/engines/images/server/__main__.py"), True),
        (("python3", "-m", "supervisor.engines.images.server"), True),
        (("python3", "server", "--model", "m"), False),
        (("llama-server",), False),
    ],
)
def test_which_commands_start_it(argv: tuple[str, ...], ours: bool) -> None:
    """The program by its path, wherever it is installed, or as a module."""
    assert (catalogue.guess(argv).name == "images") is ours


def test_a_bare_command_is_adopted() -> None:
    """It gets what the settings would give: health body, log lines, counters, grace, the key's variable."""
    bare = Profile(name="x", command=(sys.executable, str(PROGRAM), "--model", "m"), port=8188)
    adopted = catalogue.named("images").adopt(bare)
    assert adopted.dialect is IMAGES
    assert (adopted.health.accept, adopted.health.ready_pattern, adopted.logs.parse) == (accept, READY, parse_line)
    assert (adopted.liveness.counters_path, adopted.api_key_env) == ("/metrics", "IMAGES_API_KEY")
    assert adopted.stop.grace_s == 30
    own = catalogue.named("images").adopt(
        Profile(name="x", command=("x",), port=1, stop=Stop(grace_s=3), health=Health(path="/v1/models"))
    )
    assert (own.stop.grace_s, own.health.accept) == (3, Health().accept)
