"""What a user may write to name a profile, and the words for what is wrong with it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.errors import ProfileError
from supervisor.loading import ProfileCodeFailed, load

MODULE = """
from dataclasses import dataclass
from supervisor import Hooks, Profile

plain = Profile(name="plain", command=("server",), port=1)
pair = (Profile(name="pair", command=("server",), port=2), Hooks(observers=(print,)))

def built():
    return Profile(name="built", command=("server",), port=3)

def built_pair():
    return pair

@dataclass
class Engine:
    port: int = 4

    def profile(self):
        return Profile(name="engine", command=("server",), port=self.port)

engine = Engine(port=5)

class EngineWithHooks(Engine):
    def hooks(self):
        return Hooks(observers=(print,))

with_hooks = EngineWithHooks(port=8)

def built_engine():
    return Engine(port=6)

def needs(argument):
    return plain

def fails():
    raise RuntimeError("no weights here")

def leaves():
    raise SystemExit(0)

async def awaited():
    return plain

class Lazy:
    @property
    def profile(self):
        raise ValueError("not today")

lazy = Lazy()

class Mute(BaseException):
    def __str__(self):
        raise AttributeError("no words")

def mutters():
    raise Mute

number = 7
triple = (plain, Hooks(), 1)
swapped = (Hooks(), plain)
_private = 0
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a module of profiles; what gets imported from it is forgotten afterwards."""
    (tmp_path / "house_profiles.py").write_text(MODULE)
    (tmp_path / "house_broken.py").write_text("import nothing_of_this_name\n")
    (tmp_path / "house_wrong.py").write_text("PORT = 1\ndef (:\n")
    (tmp_path / "house_uses_wrong.py").write_text("import house_wrong\n")
    (tmp_path / "house_misspelt.py").write_text("PORT = 1\n\nserver = Profil()\n")
    (tmp_path / "house_exits.py").write_text("import sys\nsys.exit(0)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = dict(sys.modules)
    yield tmp_path
    sys.modules.clear()
    sys.modules.update(before)


@pytest.mark.parametrize("where", ["house_profiles", "house_profiles.py", "./house_profiles.py"])
@pytest.mark.parametrize(
    ("attribute", "name", "port"),
    [
        ("plain", "plain", 1),
        ("pair", "pair", 2),
        ("built", "built", 3),
        ("built_pair", "pair", 2),
        ("engine", "engine", 5),
        ("built_engine", "engine", 6),
        ("Engine", "engine", 4),
    ],
)
@pytest.mark.usefixtures("modules")
def test_a_name_may_lead_to_any_of_the_shapes(where: str, attribute: str, name: str, port: int) -> None:
    """A profile, a pair with hooks, an object with `.profile()`, or a function that returns one of them."""
    profile, hooks = load(f"{where}:{attribute}")
    assert (profile.name, profile.port) == (name, port)
    assert bool(hooks.observers) == (name == "pair")


@pytest.mark.usefixtures("modules")
def test_an_engine_brings_its_own_steps() -> None:
    """An object with `.profile()` and `.hooks()` gives both: without its Steps an engine does not work."""
    profile, hooks = load("house_profiles:with_hooks")
    assert (profile.port, hooks.observers) == (8, (print,))


def test_a_path_may_be_absolute(modules: Path) -> None:
    """The file need not be in the working directory."""
    assert load(f"{modules / 'house_profiles.py'}:plain")[0].name == "plain"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("house_profiles", "module:attribute, path/file.py:attribute, or a registered name ('local')"),
        (":plain", "module:attribute, path/file.py:attribute, or a registered name ('local')"),
        ("house_profiles:", "module:attribute, path/file.py:attribute, or a registered name ('local')"),
        ("", "module:attribute, path/file.py:attribute, or a registered name ('local')"),
        ("house_profiles:nothing", "an attribute of house_profiles, which has: Engine, EngineWithHooks, Hooks"),
        ("house_profiles:number", "it is int"),
        ("house_profiles:triple", "a Profile, a (Profile, Hooks) pair"),
        ("house_profiles:swapped", "it is tuple"),
        ("no_such_module:x", "a module that can be imported from here: No module named 'no_such_module'"),
        ("house_profiles.inner:x", "a module that can be imported from here: No module named 'house_profiles.inner'"),
        ("missing.py:x", "a Python file that exists"),
        ("house_profiles:needs", "missing a required argument: 'argument'"),
        ("house_profiles:awaited", "a plain `def`"),
    ],
)
@pytest.mark.usefixtures("modules")
def test_a_wrong_name_says_what_would_be_right(name: str, says: str) -> None:
    """Whatever is wrong with the words, the file or what it holds, the answer is one ProfileError about PROFILE."""
    with pytest.raises(ProfileError, match=re.escape(says)) as caught:
        load(name)
    assert caught.value.field == "PROFILE"


@pytest.mark.parametrize(
    ("name", "raised", "where"),
    [
        ("house_broken:x", "ModuleNotFoundError: No module named 'nothing_of_this_name'", "house_broken.py, line 1"),
        ("house_broken.py:x", "ModuleNotFoundError: No module named 'nothing_of_this_name'", "house_broken.py, line 1"),
        ("house_wrong:x", "SyntaxError: invalid syntax", "house_wrong.py, line 2: def (:"),
        ("house_wrong.py:x", "SyntaxError: invalid syntax", "house_wrong.py, line 2: def (:"),
        (
            "house_misspelt.py:x",
            "NameError: name 'Profil' is not defined",
            "house_misspelt.py, line 3: server =",
        ),
        ("house_uses_wrong.py:x", "SyntaxError: invalid syntax", "house_wrong.py, line 2: def (:"),
        ("house_exits:x", "SystemExit: 0", "house_exits.py, line 2: sys.exit(0)"),
        ("house_exits.py:x", "SystemExit: 0", "house_exits.py, line 2: sys.exit(0)"),
        ("house_profiles:fails", "RuntimeError: no weights here", 'house_profiles.py, line 36: raise RuntimeError("no'),
        ("house_profiles:leaves", "SystemExit: 0", "house_profiles.py, line 39: raise SystemExit(0)"),
        ("house_profiles:lazy", "ValueError: not today", "house_profiles.py, line 47: raise ValueError("),
        ("house_profiles:mutters", "Mute: Mute", "house_profiles.py, line 56: raise Mute"),
    ],
)
@pytest.mark.usefixtures("modules")
def test_what_a_profile_raises_is_shown_with_file_and_line(name: str, raised: str, where: str) -> None:
    """Code that raises while a profile is loaded is reported with what it raised, where, and the source line."""
    with pytest.raises(ProfileCodeFailed) as caught:
        load(name)
    assert caught.value.cli_status == 2
    assert f"cannot be loaded: {raised}" in str(caught.value)
    assert where in caught.value.where[-1]


@pytest.mark.usefixtures("modules")
def test_every_line_on_the_way_is_shown() -> None:
    """A file that imports one that raises: both lines are shown, the outer one first, and none of a library."""
    with pytest.raises(ProfileCodeFailed) as caught:
        load("house_uses_wrong.py:x")
    assert [line.partition(", line")[0].rpartition("/")[2] for line in caught.value.where] == [
        "house_uses_wrong.py",
        "house_wrong.py",
    ]


def test_a_wrong_setting_is_shown_with_file_and_line(modules: Path) -> None:
    """A setting that the profile refuses keeps its own error, which notes the line that made the profile."""
    (modules / "house_setting.py").write_text(
        "from supervisor import Profile\n\nserver = Profile(name='s', command=('s',), port=-1)\n"
    )
    with pytest.raises(ProfileError, match="port=-1 is not valid") as caught:
        load("house_setting.py:server")
    assert [note.partition("house_setting.py, ")[2] for note in caught.value.__notes__] == [
        "line 3: server = Profile(name='s', command=('s',), port=-1)"
    ]


def test_a_registered_name_needs_no_file() -> None:
    """`local` is registered by an entry point; it brings its Steps along."""
    profile, hooks = load("local")
    assert profile.name
    assert hooks.before_start and hooks.warmup and hooks.liveness


def test_a_package_may_register_a_profile(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an installed package names in the group `warmboot.profiles` is loaded by that name."""
    metadata = modules / "house-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: house\nVersion: 1.0\n")
    names = "plain = house_profiles:plain\nbroken = house_broken:x"
    (metadata / "entry_points.txt").write_text(f"[warmboot.profiles]\n{names}\n")
    monkeypatch.syspath_prepend(str(modules))
    assert load("plain")[0].name == "plain"
    with pytest.raises(ProfileCodeFailed, match=r"the registered profile 'broken' \(house_broken:x\) cannot be loaded"):
        load("broken")
    with pytest.raises(ProfileError, match=re.escape("a registered name ('broken', 'local', 'plain')")):
        load("unknown")


def test_a_file_may_import_what_lies_beside_it(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with `python path/file.py`, the file's directory is searched, wherever the command is run."""
    (modules / "house_sibling.py").write_text("PORT = 77\n")
    (modules / "house_uses.py").write_text(
        "from house_sibling import PORT\n"
        "from supervisor import Profile\n"
        "server = Profile(name='s', command=('s',), port=PORT)\n"
    )
    monkeypatch.chdir("/")
    assert load(f"{modules / 'house_uses.py'}:server")[0].port == 77


def test_a_file_may_have_any_name(modules: Path) -> None:
    """A profile in `supervisor.py` or `json.py` does not take the place of the module of that name."""
    for name in ("supervisor", "json"):
        module = sys.modules[name]
        (modules / f"{name}.py").write_text(MODULE)
        assert load(f"{name}.py:plain")[0].name == "plain"
        assert sys.modules[name] is module
