"""The router's dialect against what llama.cpp's router really answered (tests/testdata/llama_cpp/router-*)."""

from __future__ import annotations

import json

import pytest

from supervisor.dialect import ModelState, Reading
from supervisor.engines.llama_cpp import LLAMA_CPP
from supervisor.engines.llama_cpp.router_dialect import ROUTER, dialect_of, is_router
from tools.transcripts import Exchange, exchange

SEA = dialect_of(["sea"])
CRASHED = ModelState(value="failed", lost=True, detail="its process exited with code 1")


def said(name: str) -> Exchange:
    return exchange("llama_cpp", f"router-{name}")


def value(reading: Reading[object] | None, name: str) -> object:
    """What a dialect reads out of a captured answer of the route that it names."""
    assert reading
    answer = said(name)
    assert (answer.method, answer.path, answer.status) == ("GET", reading.path, 200)
    return reading.read(answer.body)


@pytest.mark.parametrize(
    ("name", "hill", "sea"),
    [
        ("models", ModelState(value="unloaded"), ModelState(value="loaded")),
        ("models-loading", ModelState(value="loading"), ModelState(value="loaded")),
        ("models-failed", CRASHED, ModelState(value="asleep")),
        ("models-sleeping", CRASHED, ModelState(value="asleep")),
    ],
)
def test_states(name: str, hill: ModelState, sea: ModelState) -> None:
    """Every model has its state; one that was killed is lost, one that sleeps or was never loaded is not."""
    states = value(ROUTER.states, name)
    assert isinstance(states, dict)
    assert (states["hill"], states["sea"]) == (hill, sea)
    assert states["ocean"] == sea  # an alias


def test_a_router_that_loads_nothing_by_itself() -> None:
    """Without autoload an unloaded model stays so, which is a failure if it must be loaded."""
    states = dialect_of(autoload=False).states
    assert states
    assert (states.read(said("models").body) or {})["hill"] == ModelState(value="unloaded", lost=True)


def test_models_that_can_be_asked() -> None:
    """A model that sleeps is as good as loaded: a request wakes it."""
    assert value(ROUTER.models, "models") == ("sea", "ocean")
    assert value(ROUTER.models, "models-sleeping") == ("sea", "ocean")
    assert json.loads(said("models").body)["data"][0]["owned_by"] == ROUTER.owned_by


def test_asleep() -> None:
    """The router is asleep once each model that has a process sleeps."""
    assert [value(ROUTER.asleep, name) for name in ("models", "models-loading", "models-sleeping")] == [
        *(False, False),
        True,
    ]
    assert LLAMA_CPP.asleep
    assert LLAMA_CPP.asleep.read(said("props-sleeping").body) is True


def test_what_one_model_tells() -> None:
    """Readings of one model name it, wake nobody and load nothing."""
    (requests,) = SEA.requests
    assert value(requests, "metrics") == value(requests, "metrics-sleeping") == 0
    assert value(SEA.slots, "props") == 1
    assert value(SEA.vision, "props") is False
    assert SEA.token_counters
    assert value(SEA.token_counters, "metrics")
    assert all("autoload=false" in (reading.path if reading else "") for reading in (requests, SEA.slots, SEA.vision))
    assert said("metrics-unloaded").status == said("metrics-nameless").status == 400
    assert ROUTER.requests == ()


def test_a_router_among_servers() -> None:
    """The list of models tells a router from a server with one model; a check from outside then asks about one."""
    assert LLAMA_CPP.several
    found = LLAMA_CPP.several(said("models").body, "sea")
    assert found
    assert found.slots
    assert found.slots.path == "/props?model=sea&autoload=false"
    assert LLAMA_CPP.several(exchange("embedded", "models").body, "gemma-3-270m") is None


@pytest.mark.parametrize("body", ["", "[]", "{}", "null", '{"data": 1}', '{"data": [{"id": "a"}]}', '{"data": [1]}'])
def test_answers_that_do_not_tell(body: str) -> None:
    """An answer of another shape tells nothing, and raises nothing."""
    assert all(reading and reading.read(body) is None for reading in (ROUTER.states, ROUTER.models, ROUTER.asleep))


@pytest.mark.parametrize(
    ("argv", "env", "router"),
    [
        (("llama-server",), {}, True),
        (("llama-server", "--models-dir", "x", "--models-max", "2"), {}, True),
        (("nice", "llama-server", "-m", "x.gguf"), {}, False),
        (("llama-server", "--hf_repo", "a/b"), {}, False),
        (("llama-server", "--model=x.gguf"), {}, False),
        (("llama-server",), {"LLAMA_ARG_MODEL": "x.gguf"}, False),
    ],
)
def test_is_router(argv: tuple[str, ...], env: dict[str, str], router: bool) -> None:
    """A command that names no model starts a router."""
    assert is_router(argv, env) is router
