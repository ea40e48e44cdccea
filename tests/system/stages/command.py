"""Supervisions as a process: `supervise exec`, `supervise run`, and a host of a Daemon."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading

from support import ROOT, TESTS, free_port
from system.faults import TOKEN
from system.stages.scene import Scene

SPEC = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from system.faults import row
def deployment():
    fault, tmp = row({name!r}), Path({tmp!r})
    profile, hooks = fault.build(tmp)
    if fault.cripple:
        fault.cripple(tmp)
    return profile, hooks
"""
HOST = """
import sys
from dataclasses import replace
from mine import deployment
from supervisor import Daemon
from supervisor.logs.sink import Sink
profile, hooks = deployment()
with Sink(sys.stderr, "json") as sink, Daemon(profile, replace(hooks, observers=(*hooks.observers, sink))) as daemon:
    for line in sys.stdin:
        getattr(daemon, line.strip())()
        print(line.strip(), flush=True)
"""


class Command(Scene):
    """`supervise exec`, `supervise run`, or a host of a Daemon, as a process."""

    def begin(self) -> None:
        fault, tmp = self.fault, self.tmp
        env = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp}", TOKEN: str(tmp), **fault.env}
        spec = tmp / "mine.py"
        spec.write_text(SPEC.format(tests=str(TESTS), name=fault.name, tmp=str(tmp)))
        if fault.stage == "host":
            argv = [sys.executable, "-c", HOST]
        elif fault.stage == "run":
            argv = [sys.executable, "-m", "supervisor", "run", f"{spec}:deployment", "--log-format", "json"]
        else:
            options = [self._fill(word) for word in fault.options]
            if fault.under or fault.act in ("close log", "ignore log"):  # the log does not tell where it serves
                self.fixed_port = free_port()
                options += ["--port", str(self.fixed_port)]
            argv = [
                sys.executable,
                "-m",
                "supervisor",
                "exec",
                "--log-format",
                "json",
                *options,
                "--",
                *fault.argv(tmp),
            ]
        self.process = subprocess.Popen(
            [*fault.under, *argv],
            env=env,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.supervisor = self.process.pid
        self.reading, self.last = True, ""
        self._reader = threading.Thread(target=self._read)
        self._waiter = threading.Thread(target=self._await)
        self._reader.start()
        self._waiter.start()
        self.extras.callback(self._close)

    def _fill(self, word: str) -> str:
        if word == "{held}":
            held = self.extras.enter_context(socket.create_server(("127.0.0.1", 0)))
            return str(held.getsockname()[1])
        return word.replace("{free}", str(free_port()))

    def _read(self) -> None:
        assert self.process.stderr
        while self.reading and (line := self.process.stderr.readline()):
            self.last = line if line.strip() and not line[0].isspace() else self.last  # indented: where it was raised
            with contextlib.suppress(ValueError):
                self.events.append(json.loads(line))

    def _await(self) -> None:
        code = self.process.wait()
        if self.reading:
            self._reader.join()
        ends = [event for event in self.events if event["event"] in ("supervision.failed", "supervise.exit")]
        if ends and ends[-1].get("error"):
            self.error, self.text = str(ends[-1]["error"]), str(ends[-1]["detail"])
        elif code and not self.events:  # an error before the log begins is told in plain words
            self.error, _, self.text = self.last.removeprefix("supervise: ").partition(": ")
        self.status = code if code >= 0 else 128 - code

    def _close(self) -> None:
        self.process.kill()
        self._waiter.join()
        self._reader.join()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream:
                stream.close()

    def stop(self) -> None:
        if self.fault.stage == "host":
            assert self.process.stdin
            self.process.stdin.close()
        else:
            self.process.send_signal(signal.SIGTERM)

    def seal(self) -> None:
        self._tell("seal")

    def resume(self) -> None:
        self._tell("resume")

    def _tell(self, word: str) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == f"{word}\n"
