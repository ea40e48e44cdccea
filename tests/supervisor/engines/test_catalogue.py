"""The catalogue finds every engine by its package, its name and its command."""

from __future__ import annotations

import pytest

from supervisor.engines import PlainServer, catalogue
from supervisor.engines.base import EngineKind
from supervisor.errors import ProfileError
from supervisor.profile import Health
from support import ROOT


def test_each_package_with_a_kind_is_found() -> None:
    """A package becomes an engine by its module `kind` alone."""
    packages = {path.parent.name for path in (ROOT / "supervisor/engines").glob("*/kind.py")}
    assert len(catalogue.kinds()) == len(packages) + 1
    assert catalogue.kinds()[-1] is catalogue.PLAIN
    assert all(isinstance(kind, EngineKind) for kind in catalogue.kinds())
    assert len({kind.name for kind in catalogue.kinds()}) == len(packages) + 1


@pytest.mark.parametrize("name", ["llama.cpp", "llama-cpp"])
def test_a_name_is_found_with_or_without_its_point(name: str) -> None:
    """`--engine llama-cpp` means llama.cpp."""
    assert catalogue.named(name).name == "llama.cpp"


def test_an_unknown_name_lists_those_that_there_are() -> None:
    """A wrong `--engine` says what would be right."""
    with pytest.raises(ProfileError, match=r"--engine.*'lama'.*llama-cpp.*plain"):
        catalogue.named("lama")


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (("/opt/llama.cpp/llama-server", "-m", "x.gguf"), "llama.cpp"),
        (("nice", "llama-server"), "llama.cpp"),
        (("python3", "-m", "http.server"), "plain"),
        (("./llama-server-wrapper.sh",), "plain"),
    ],
)
def test_the_command_tells_the_engine(argv: tuple[str, ...], name: str) -> None:
    """The engine is guessed from the program that the command names."""
    assert catalogue.guess(argv).name == name


def test_adopting_keeps_what_was_chosen() -> None:
    """An engine fills in what was left at the defaults, and nothing else."""
    kind = catalogue.named("llama-cpp")
    plain = PlainServer(command=("llama-server", "-m", "m.gguf", "--port", "{port}", "--metrics")).profile()
    adopted = kind.adopt(plain)
    assert adopted.dialect is kind.dialect
    assert adopted.health.accept(200, "{}") is not None
    assert adopted.liveness.counters_path == "/metrics"
    chosen = kind.adopt(PlainServer(command=("llama-server", "--port", "{port}")).profile())
    assert chosen.liveness.counters_path is None
    assert Health().accept(200, "{}") is None
