"""The sealed program is the one that was asked for: command, variables, no secret of the host's."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hooks.contract.environment import command, environment, stray_secrets
from supervisor import Secret, State
from supervisor.child import Child
from supervisor.errors import StepFailed
from supervisor.profile import Profile
from support import FAKE, is_in
from tools.contract import SERVER, http, profile, refused, sealed, serving
from tools.serve import child_at

pytestmark = pytest.mark.anyio


async def test_a_wrapper_is_told(tmp_path: Path) -> None:
    """A command that became another one is a warning, with keys masked; a script's interpreter in front is none."""
    wrapper, tool = tmp_path / "wrapper", tmp_path / "server"
    wrapper.write_text(f"exec {' '.join(SERVER[:-1])} $1 --api-key made-up-key-1234")
    async with serving(profile(command=("sh", str(wrapper), "{port}"))) as (server, seen):
        await server.seal()
        (finding,) = seen
        assert (finding.check, finding.severity) == ("command", "warning")
        assert str(FAKE) in finding.line
        assert "made-up" not in finding.line
    tool.write_text(f"#!{sys.executable} -IS\nimport runpy\nrunpy.run_path({str(FAKE)!r}, run_name='__main__')\n")
    tool.chmod(0o755)
    async with serving(profile(command=(str(tool), "--port", "{port}"))) as (server, seen):
        await sealed(server, seen)


def test_commands_that_differ() -> None:
    """A program without arguments is not everything's ending, and another argument is seen."""
    child = child_at(9)
    assert not command(child, child.argv, 5)
    assert not command(child, ("/usr/bin/interpreter", *child.argv), 5)
    assert command(child, (*child.argv, "--more"), 5)
    assert command(child, (), 5)
    bare = replace(child, profile=replace(child.profile, command=("server",), port=9))
    assert command(bare, ("another",), 5)
    assert command(bare, (), 5)
    assert not command(bare, ("server",), 5)


@pytest.mark.parametrize("change", [("-u", "WANTED"), ("WANTED=changed-value",), ("-u", "THE_KEY"), ("-i",)])
async def test_variables_that_a_wrapper_changed(change: tuple[str, ...]) -> None:
    """A variable of the profile that is lost or changed refuses the seal, by name, and never with its value."""
    what = profile(
        command=("env", *change, *SERVER),
        env={"WANTED": "on {port}"},
        api_key=Secret("made-up-key-1234"),
        api_key_env="THE_KEY",
    )
    async with serving(what) as (server, seen):
        with pytest.raises(StepFailed) as caught:
            await server.seal()
        assert is_in(server, State.READY)
        errors = [finding for finding in seen if finding.severity == "error"]
        names = ["WANTED", "THE_KEY"] if change == ("-i",) else ["THE_KEY" if "THE_KEY" in change else "WANTED"]
        assert [(finding.check, finding.what.split()[-1]) for finding in errors] == [("environment", n) for n in names]
        assert not any(value in str(caught.value) for value in ("on 1", "on {", "changed-value", "made-up"))
    async with serving(replace(what, command=SERVER)) as (server, seen):
        await sealed(server, seen)


async def test_variables_that_were_written_over() -> None:
    """A server that sets its title writes over the memory of its variables: that is a warning, not a missing key."""
    program = (
        "import ctypes\n"
        "first = ctypes.POINTER(ctypes.c_void_p).in_dll(ctypes.CDLL(None), 'environ')[0]\n"
        "ctypes.memset(first, 0, len(open('/proc/self/environ', 'rb').read()) - 1)\n"
    )
    what = profile(command=http(program), env={"WANTED": "yes"})
    async with serving(what) as (server, seen):
        await server.seal()
        assert [(finding.check, finding.severity) for finding in seen] == [("environment", "warning")]


async def test_a_secret_that_slipped_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret of the host refuses the seal, by its name alone; narrowed, or named in the profile, it does not."""
    monkeypatch.setenv("MADE_UP_TOKEN", "made-up-value")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("BLANK_TOKEN", "")
    inherited = ("PATH", "MADE_UP_*", "TOKENIZERS_*", "BLANK_*")
    async with serving(profile(inherit_env=inherited)) as (server, seen):
        finding = await refused(server, seen, "stray-secret")
        assert "MADE_UP_TOKEN" in finding.what
        assert "made-up-value" not in str(finding)
    for what in (profile(), profile(inherit_env=inherited, env={"MADE_UP_TOKEN": Secret("made-up-value")})):
        async with serving(what) as (server, seen):
            await sealed(server, seen)


def test_the_profiles_own_key_is_meant() -> None:
    """The variable that carries the profile's key is no stray."""
    child = child_at(9)
    child = replace(child, profile=replace(child.profile, api_key_env="SERVER_API_KEY"))
    assert child.profile.api_key
    seen = {"SERVER_API_KEY": child.profile.api_key.reveal()}
    assert not environment(child, seen, 5)
    assert not stray_secrets(child, seen, 5)
    assert stray_secrets(child, {"OTHER_API_KEY": "x"}, 5)


def test_the_argv_of_a_life() -> None:
    """A life's command has its host and port filled in; before a port is chosen, its place stays."""
    what = Profile(name="x", command=("s", "--at", "{host}:{port}", '{"a": {}}'), host="0.0.0.0")
    child = Child(profile=what, port=81, pid=None, redact=child_at(1).redact)
    assert child.argv == ("s", "--at", "0.0.0.0:81", '{"a": {}}')
    assert replace(child, port=0).argv[2] == "0.0.0.0:{port}"
