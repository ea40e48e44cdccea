"""Fixtures for every test: both event loops, and the proof that a test leaves no process and no thread behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.cuda.build import Built, build_once


def pytest_configure() -> None:
    """What started the suite (a shell's background, `nohup`) may ignore signals, and every child would inherit that."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def control_sockets(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Supervisors put their control sockets in a folder of the tests' own, not among those of whoever runs them."""
    os.environ["XDG_RUNTIME_DIR"] = str(tmp_path_factory.mktemp("runtime"))


# What a test that is so marked needs, and what to say when it is skipped. `.ci/run` allows these skips to users without
# root's rights, and no other.
ROOT_RIGHTS = os.geteuid() == 0
NEEDS = {
    "root": (ROOT_RIGHTS, "root: needs root's rights"),
    "compiler": (shutil.which("cc") is not None, "compiler: needs a C compiler (cc)"),
    "sandbox": (ROOT_RIGHTS and shutil.which("runsc") is not None, "sandbox: needs gVisor's runsc and root's rights"),
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what this machine or this user cannot do."""
    for marker, (there, words) in NEEDS.items():
        if item.get_closest_marker(marker) and not there:
            pytest.skip(words)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Async tests run on both loops."""
    return request.param


@pytest.fixture(scope="session")
def cuda(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A CUDA driver without a GPU, programs that use it, and the library that puts GPU memory aside."""
    return build_once(tmp_path_factory)


@pytest.fixture(scope="session", params=["plain", "address", "thread"])
def any_cuda(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The same as it is, with ASan and UBSan (leaks too), and with TSan: a report becomes an exit code."""
    return build_once(tmp_path_factory, request.param)


def children() -> set[int]:
    """Processes whose parent is this one, zombies included."""
    found = set()
    for task in Path("/proc/self/task").iterdir() if Path("/proc/self/task").exists() else ():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            found |= set(map(int, (task / "children").read_text().split()))
    return found


def descriptors() -> int:
    """How many descriptors this process holds."""
    return len(os.listdir("/dev/fd"))


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """A test ends with the processes and threads that it began with."""
    before = children()
    threads = {thread.ident for thread in threading.enumerate()}
    yield
    assert children() <= before, f"processes left behind: {children() - before}"
    # Trio keeps its idle worker threads for 10 s, for the whole process.
    left = [t for t in threading.enumerate() if t.ident not in threads and not t.name.startswith("Trio thread")]
    for thread in left:
        thread.join(5)  # a worker of a loop that has just ended may need a moment
    left = [
        t for t in left if t.is_alive() and not t.name.startswith("Trio thread")
    ]  # their name while they work differs
    assert not left, f"threads left behind: {left}"
