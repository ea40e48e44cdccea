"""Two servers take turns on a GPU that holds one of them, by `supervise sleep` and `wake`, over a CUDA without GPU."""

from __future__ import annotations

import re
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from commandline import events_until, supervise
from fakes.cuda.build import Built, build_once
from hooks.sleep.offload import build
from supervisor.cli import main
from support import FAKE

MIB = 1 << 20


@pytest.fixture(scope="module")
def cuda(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A CUDA driver without a GPU, and the library."""
    return build_once(tmp_path_factory)


@pytest.fixture
def start(cuda: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Starts a server under a name, with weights on the one GPU; returns its process and its URL, once READY."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    built = build._cached()  # as if `supervise gpu-memory build` had put it there
    built.parent.mkdir(parents=True)
    shutil.copy(cuda.library, built)
    variables = {
        "LD_LIBRARY_PATH": str(cuda.folder),
        "FAKE_CUDA_SHARED": str(tmp_path / "gpu"),
        # A server has 32 MiB there and a context of 16, which stays: room for one of them and the other's context.
        "FAKE_CUDA_BYTES": str(80 * MIB),
    }
    options = [word for name, value in variables.items() for word in ("--env", f"{name}={value}")]
    command = [sys.executable, "-I", "-S", str(FAKE), "--port", "{port}", "--gpu-engine", str(cuda.engine)]
    with ExitStack() as stack:

        def begin(name: str) -> tuple[Any, str]:
            argv = (
                "exec",
                "--name",
                name,
                "--log-format",
                "json",
                "--gpu-memory",
                "offload",
                "--golden",
                "text",
                "--contract",
            )
            process = stack.enter_context(supervise(*argv, *options, "--", *command))
            return process, events_until(process, "child.ready")[-1]["url"]

        yield begin


def answer(url: str) -> str:
    """What a server says; something else than OK when its weights are not what they were."""
    asked = {"messages": [{"role": "user", "content": "?"}]}
    said = httpx.post(f"{url}/v1/chat/completions", json=asked, trust_env=False)
    return str(said.json()["choices"][0]["message"]["content"])


def test_two_servers_take_turns_on_one_gpu(start: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """One sleeps while the other serves; a wake without room is refused with the numbers, and harms neither of them."""

    def command(*args: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(args), prog_name="supervise")
        said = capsys.readouterr()
        return int(str(ended.value.code)), said.out, said.err

    first, one = start("one")
    expected = answer(one)
    status, out, _ = command("sleep", "one")
    assert status == 0, out
    assert "33.6 MB of GPU memory put aside" in out
    assert re.search(r"sleep +gpu memory self-check .*\n.*sleep +gpu memory offload", out)
    assert events_until(first, "gpu.offloaded")[-1]["stored_bytes"] == 16 * MIB  # the other half are zeros

    second, two = start("two")
    assert answer(two) == expected
    status, _, err = command("wake", "one")
    assert status == 4
    assert "it sleeps on, unharmed" in err
    assert err.rstrip().endswith("It is sealed now.")
    assert re.search(r"GPU 0 has 1\d\.\d MB free, and it needs 33\.6 MB", err)
    assert answer(two) == expected

    assert command("sleep", "two")[0] == 0
    status, out, _ = command("wake", "one")
    assert (status, "33.6 MB of GPU memory brought back" in out) == (0, True)
    assert "golden text replay" in out
    assert answer(one) == expected
    assert command("sleep", "one")[0] == 0
    assert command("wake", "two")[0] == 0
    assert answer(two) == expected
    for process in (first, second):  # one of them sleeps
        process.send_signal(signal.SIGTERM)
        assert events_until(process, "supervise.exit")[-1]["exit_status"] == 0
