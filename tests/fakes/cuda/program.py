"""Start a program that has GPU memory, command it, and speak with the library inside it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from fakes.cuda.build import Built

ANSWER_S = 30.0  # after which an answer counts as never coming
MIB = 1 << 20
NOTHING: Mapping[str, str] = {}
NUMBERS = count()
TSAN = "exitcode=66:halt_on_error=0:die_after_fork=0:atexit_sleep_ms=20"


class EngineFailed(Exception):
    """The program answered "error ..." or "bad ...", or is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A running program; its commands are in engine.c."""

    process: subprocess.Popen[str]
    folder: Path  # of the library's sockets
    log: Path  # its stderr

    @property
    def pid(self) -> int:
        """The process."""
        return self.process.pid

    @property
    def address(self) -> Path:
        """Where the library listens."""
        return self.folder / f"{self.pid}.sock"

    def tell(self, command: str) -> None:
        """Send a command and do not wait for its answer."""
        assert self.process.stdin
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        """The next answer, as it is."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            message = f"the program is gone, with exit code {self.process.wait()}"
            raise EngineFailed(message)
        return line.strip()

    def raw(self, command: str) -> str:
        """The answer to a command, whatever it says."""
        self.tell(command)
        return self.hear()

    def __call__(self, command: str) -> str:
        """What the answer says beyond "ok"."""
        answer = self.raw(command)
        if answer != "ok" and not answer.startswith("ok "):
            message = f"{command}: {answer}"
            raise EngineFailed(message)
        return answer.removeprefix("ok").strip()

    def used(self, device: int = 0) -> int:
        """Bytes in use on the device."""
        return int(self(f"info {device}").split()[0])

    def connect(self) -> socket.socket:
        """A connection to the library."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(ANSWER_S)
        folder = os.open(self.folder, os.O_PATH)  # the folder's own path may be too long for an address
        try:
            connection.connect(f"/proc/self/fd/{folder}/{self.address.name}")
        except OSError:
            connection.close()
            raise
        finally:
            os.close(folder)
        return connection

    def send(self, data: bytes) -> bytes:
        """Everything that comes back for these bytes."""
        with self.connect() as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65536), b""))

    def ask(self, op: str, **options: Any) -> dict[str, Any]:
        """The library's answer to a request."""
        answer = json.loads(self.send(json.dumps({"op": op, **options}).encode() + b"\n"))
        assert isinstance(answer, dict)
        return answer

    def done(self, op: str, **options: Any) -> dict[str, Any]:
        """The answer to a request that must succeed."""
        answer = self.ask(op, **options)
        assert answer["ok"], answer
        return answer


def environment(built: Built, folder: Path | None, extra: Mapping[str, str] = NOTHING) -> dict[str, str]:
    """The environment of a program below the stub; without a folder the library is not told to do anything."""
    preload = [*built.runtimes, *([str(built.library)] if built.library.exists() else [])]
    made = {name: value for name, value in os.environ.items() if not name.startswith(("WARMBOOT_", "FAKE_"))}
    made |= {
        "LD_LIBRARY_PATH": str(built.folder),
        "ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0:exitcode=66:handle_segv=0",
        "LSAN_OPTIONS": "report_objects=1",
        "TSAN_OPTIONS": TSAN,
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    }
    if preload:
        made["LD_PRELOAD"] = ":".join(preload)
    if folder is not None:
        made |= {"WARMBOOT_GPU_MEMORY": str(folder), "WARMBOOT_GPU_MEMORY_MIN": str(MIB)}
    return made | dict(extra)


@contextmanager
def engine(
    built: Built,
    folder: Path,
    *,
    env: Mapping[str, str] = NOTHING,
    python: bool = False,
    told: bool = True,
    code: int = 0,
) -> Iterator[Engine]:
    """A program, which ends when its stdin is closed and must then have this exit code; a sanitizer has another."""
    folder.mkdir(mode=0o700, exist_ok=True)
    own = Path(__file__).with_name("engine.py")
    command = [sys.executable, "-I", "-S", str(own), str(built.engine)] if python else [str(built.program)]
    log = folder.parent / f"{folder.name}-{next(NUMBERS)}.stderr"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=environment(built, folder if told else None, env),
        )
    with process:
        try:
            yield Engine(process=process, folder=folder, log=log)
            assert process.stdin
            process.stdin.close()
            ended = process.wait(ANSWER_S)
        except BaseException:
            process.kill()
            raise
    assert ended == code, f"exit code {ended}\n{log.read_text()}"
