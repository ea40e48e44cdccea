"""Whole files that are rehearsed by a host's package, which registers itself."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from supervisor.errors import ProfileError
from supervisor.rehearsal.entries import of_entry
from supervisor.rehearsal.request import RehearsalRequest

REQUEST = RehearsalRequest(name="entry.py")
HOST = """
from supervisor.errors import ProfileError
from supervisor.rehearsal.subject import Subject

def prepare(entry, request, pairs):
    if "mine" not in entry.read_text():
        raise ProfileError(field="ENTRY", value=str(entry), allowed="mine")
    return Subject(argv=(str(entry), *pairs), env={}, mounts=(), weights=(), key_variable=None, secrets=())
"""


def register(folder: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    """Makes `folder` an installed package `house` that registers a function for whole files."""
    metadata = folder / "house-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: house\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[warmboot.rehearsals]\nhouse = {value}\n")
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])


def test_a_host_takes_its_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several hosts the one that knows the file prepares it; a file of nobody is refused in a host's words."""
    (tmp_path / "house_host.py").write_text(HOST)
    register(tmp_path, monkeypatch, "house_host:prepare")
    entry = tmp_path / "entry.py"
    entry.write_text("# mine\n")
    assert of_entry(entry, REQUEST, ("A=1",)).argv == (str(entry), "A=1")
    entry.write_text("# of nobody\n")
    with pytest.raises(ProfileError, match=re.escape(str(entry))):
        of_entry(entry, REQUEST, ())
    sys.modules.pop("house_host", None)


def test_a_host_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package whose requirements are missing says so, and does not pass for a wrong file."""
    monkeypatch.setattr(sys, "path", [])  # without this project's own host
    register(tmp_path, monkeypatch, "house_without_its_requirements:prepare")
    with pytest.raises(ProfileError, match="No module named 'house_without_its_requirements'"):
        of_entry(tmp_path / "entry.py", REQUEST, ())


def test_without_any_host_a_profile_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no package registers anything, a file without an attribute cannot be rehearsed."""
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(ProfileError, match=r"entry\.py:ATTRIBUTE, because no installed package"):
        of_entry(tmp_path / "entry.py", REQUEST, ())


def test_an_entry_without_modal_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modal is an extra: an entry that is rehearsed without it names the extra."""
    monkeypatch.setitem(sys.modules, "modal", None)  # as if it were not installed
    with pytest.raises(ProfileError, match=re.escape("pip install 'warmboot[modal]'")):
        of_entry(tmp_path / "entry.py", REQUEST, ())
