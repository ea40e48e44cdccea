"""Python servers that wait by poll, for sandboxes that cannot save an epoll."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest

from supervisor import Profile, Secret
from supervisor.rehearsal.event_loop import polling

LOOP = "import asyncio; print(type(asyncio.new_event_loop()._selector).__name__)"
UVLOOP = "import uvloop, asyncio; print(isinstance(uvloop.new_event_loop(), asyncio.SelectorEventLoop))"


def profile(**fields: object) -> Profile:
    return Profile(name="server", command=("server", "{port}"), **fields)  # type: ignore[arg-type]


def printed(program: str, *more: Path) -> str:
    """What a Python program prints in the environment of a server that waits by poll."""
    own = {"PYTHONPATH": os.pathsep.join(map(str, more))} if more else {}
    env: Mapping[str, object] = polling(profile(env=own, inherit_env=())).env
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env={name: str(value) for name, value in env.items()},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def test_an_event_loop_waits_by_poll() -> None:
    """asyncio chooses its selector when a loop is made, and then finds poll."""
    assert printed(LOOP) == "PollSelector"


def test_a_hidden_sitecustomize_runs_too(tmp_path: Path) -> None:
    """The environment's own start-up module runs, with what it does."""
    (tmp_path / "sitecustomize.py").write_text("import builtins; builtins.seen = 'yes'")
    assert printed(f"print(seen); {LOOP}", tmp_path).split() == ["yes", "PollSelector"]


def test_uvloop_is_replaced_where_it_is_installed(tmp_path: Path) -> None:
    """uvloop waits by epoll in C, so whoever imports it gets asyncio's loop; where it is missing, it stays missing."""
    (tmp_path / "uvloop.py").write_text("raise SystemExit('the real one')")
    assert printed(UVLOOP, tmp_path) == "True"
    missing = "import sys; print('uvloop' in sys.modules)"
    assert printed(missing) == str(find_spec("uvloop") is not None)


@pytest.mark.parametrize(
    ("own", "inherit", "tail"),
    [({}, (), []), ({"PYTHONPATH": "/own"}, ("*",), ["/own"]), ({}, ("PYTHON*",), ["/host"])],
)
def test_the_servers_own_path_is_kept(
    own: dict[str, str], inherit: tuple[str, ...], tail: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the profile sets, or else what the server would inherit, comes after our folder."""
    monkeypatch.setenv("PYTHONPATH", "/host")
    path = polling(profile(env={"KEY": Secret("k" * 9), **own}, inherit_env=inherit)).env["PYTHONPATH"]
    assert str(path).split(os.pathsep)[1:] == tail
