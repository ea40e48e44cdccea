"""The private folder of control sockets: whose it may be, what is left in it, and what becomes of that."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from supervisor.control import folder

IN_TMP = Path(f"/tmp/warmboot-{os.geteuid()}")  # noqa: S108


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An XDG_RUNTIME_DIR of the test's own, with a path too long for a socket's address."""
    (deep := tmp_path / ("deep" * 20) / "runtime").mkdir(parents=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    return deep


@pytest.mark.parametrize("umask", [0o000, 0o777])
def test_a_folder_is_ours_alone_whatever_the_umask(runtime: Path, umask: int) -> None:
    """It is made with mode 0700 and the socket with 0600; both go when nobody needs them."""
    old = os.umask(umask)
    try:
        listening = folder.listening()
    finally:
        os.umask(old)
    assert listening.path == runtime / "warmboot" / f"{os.getpid()}.sock"
    assert (listening.path.parent.stat().st_mode & 0o777, listening.path.stat().st_mode & 0o777) == (0o700, 0o600)
    listening.close()
    assert not list(runtime.iterdir())


def test_without_a_runtime_folder_of_ours_it_is_in_tmp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not set, not there, or not a path from the root: /tmp/warmboot-UID."""
    for value in ("", "/nowhere/at/all", "relative"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", value)
        assert folder.candidates() == (IN_TMP,)


@pytest.mark.root
def test_anothers_runtime_folder_is_not_used(runtime: Path) -> None:
    """One that `su` or `sudo` handed down belongs to somebody else, who would find our files in it."""
    os.chown(runtime, 65534, 65534)
    assert folder.candidates() == (IN_TMP,)


def test_a_link_is_refused(runtime: Path) -> None:
    """A folder that is a link, or a file, could lead anywhere."""
    (runtime / "warmboot").symlink_to(runtime)
    with pytest.raises(PermissionError, match="is a link or no folder"):
        folder.listening()
    (runtime / "warmboot").unlink()
    (runtime / "warmboot").touch()
    with pytest.raises(PermissionError, match="is a link or no folder"):
        folder.listening()


def test_an_open_folder_is_refused(runtime: Path) -> None:
    """Others could have put something there."""
    (runtime / "warmboot").mkdir()
    (runtime / "warmboot").chmod(0o750)
    with pytest.raises(PermissionError, match=r"open to others \(mode 0750\)"):
        folder.listening()


@pytest.mark.root
def test_somebody_elses_folder_is_refused(runtime: Path) -> None:
    """Whoever owns it could replace what is in it."""
    (runtime / "warmboot").mkdir(mode=0o700)
    os.chown(runtime / "warmboot", 65534, 65534)
    with pytest.raises(PermissionError, match="belongs to user 65534"):
        folder.listening()


def test_what_killed_supervisors_left_is_removed(runtime: Path) -> None:
    """Sockets at which nobody listens go, those of living supervisors and other files stay."""
    (home := runtime / "warmboot").mkdir(mode=0o700)
    home.chmod(0o700)
    with (
        folder.opened(home) as descriptor,
        socket.socket(socket.AF_UNIX) as dead,
        socket.socket(socket.AF_UNIX) as busy,
    ):
        for there, name in ((dead, "11.sock"), (busy, "12.sock"), (socket.socket(socket.AF_UNIX), "4194999.new")):
            with there if there is not busy else socket.socket():
                there.bind(f"/proc/self/fd/{descriptor}/{name}")
        busy.listen(0)
        (home / "mine").touch()
        first = folder.listening()
        assert set(os.listdir(home)) == {"12.sock", "mine", first.path.name}
        assert folder.pid_of(first.path.name) == os.getpid()
        # One in another container may have the same pid.
        second = folder.listening()
        assert second.path.name == f"{os.getpid()}-2.sock"
        for each in (first, second):
            each.close()
        assert set(os.listdir(home)) == {"12.sock", "mine"}
