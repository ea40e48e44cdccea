"""Where the rows of the fault matrix are played: in this process on either event loop, under a Daemon, or as a process.

Every stage shows its events as mappings, as `supervise --log-format json` prints them.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import httpx
from anyio.from_thread import BlockingPortal, start_blocking_portal

from conftest import children
from supervisor import Daemon, Hooks, Profile, Supervised, SupervisorError, supervise
from supervisor.logs.sink import to_dict
from supervisor.process.spawn import free_port
from support import FAKE, ROOT, fake_profile
from system.faults import TOKEN, Fault

LIMIT_S = 30.0
LEFT_S = 10.0  # until what is left counts as left behind
_PR_SET_CHILD_SUBREAPER = 36


def until(condition: Callable[[], Any], what: str = "") -> Any:
    """Waits for what another thread or process does; returns what the condition did."""
    ends = time.monotonic() + LIMIT_S
    while not (found := condition()):
        assert time.monotonic() < ends, f"not within {LIMIT_S:g} s: {what or condition}"
        time.sleep(0.005)
    return found


class Scene:
    """A supervision in progress. Subclasses know how to begin, seal, resume and stop it.

    Attributes:
        events: as mappings, in order.
        error: the class of the error that it ended with, and its text; empty when there is none.
        status: the exit code; None: not known yet.
        supervisor: the pid that supervises.
    """

    def __init__(self, fault: Fault, tmp: Path) -> None:
        self.fault = fault
        self.tmp = tmp
        self.events: list[Mapping[str, Any]] = []
        self.error, self.text = "", ""
        self.status: int | None = None
        self.supervisor = os.getpid()
        self.extras = ExitStack()  # what an act needs until the end
        self.fixed_port = 0

    def observe(self, event: Any) -> None:
        """An observer."""
        self.events.append(to_dict(event))

    def named(self, name: str) -> list[Mapping[str, Any]]:
        """The events of a name."""
        return [event for event in list(self.events) if event["event"] == name]

    def wait(self, name: str, count: int = 1) -> Mapping[str, Any]:
        """Waits for the n-th event of a name, unless it has ended before."""
        until(lambda: len(self.named(name)) >= count or self.ended, f"{name} in {self.events[-5:]}")
        found = self.named(name)
        assert len(found) >= count, f"ended without {name}: {self.error} {self.text} {self.events[-5:]}"
        return found[count - 1]

    @property
    def pid(self) -> int:
        """Of the newest child."""
        return int(self.named("child.spawned")[-1]["pid"])

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"http://127.0.0.1:{self.fixed_port}" if self.fixed_port else str(self.named("child.ready")[-1]["url"])

    @property
    def ports(self) -> set[int]:
        """On which children were told to listen."""
        words = [" ".join(event["argv"]) for event in self.named("child.spawned")]
        return {int(port) for line in words for port in re.findall(r"--port (\d+)", line)}

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.status is not None

    def begin(self) -> None:
        """Starts it, and does not wait."""
        raise NotImplementedError

    def stop(self) -> None:
        """Asks for the end, and does not wait."""
        raise NotImplementedError

    def seal(self) -> None:
        """Seals; a SupervisorError is why not."""
        raise NotImplementedError

    def resume(self) -> None:
        """Resumes; its error, if any, is the supervision's as well."""
        raise NotImplementedError


class Api(Scene):
    """`supervise()` in this process."""

    def __init__(self, fault: Fault, tmp: Path, portal: BlockingPortal) -> None:
        super().__init__(fault, tmp)
        self._portal = portal
        self._scope: anyio.CancelScope | None = None
        self._server: Supervised | None = None

    def started(self, value: Supervised | None = None) -> None:
        """The lifecycle calls this at READY."""
        self._server = value

    async def _main(self, profile: Profile, hooks: Hooks) -> None:
        try:
            with anyio.CancelScope() as self._scope:
                await supervise(profile, hooks, task_status=self)
        except SupervisorError as error:
            self.error, self.text = type(error).__name__, str(error)
            self.status = error.cli_status
        else:
            self.status = 0

    def begin(self) -> None:
        profile, hooks = self.fault.build(self.tmp)
        self._portal.start_task_soon(self._main, profile, replace(hooks, observers=(self.observe,)))
        until(lambda: self._scope)

    def stop(self) -> None:
        assert self._scope
        self._portal.start_task_soon(self._scope.cancel)

    def seal(self) -> None:
        assert self._server
        self._portal.call(self._server.seal)

    def resume(self) -> None:
        assert self._server
        with contextlib.suppress(SupervisorError):
            self._portal.call(self._server.resume)


class InDaemon(Scene):
    """A Daemon in this process."""

    def begin(self) -> None:
        profile, hooks = self.fault.build(self.tmp)
        self._daemon = Daemon(profile, replace(hooks, observers=(self.observe,)))
        threading.Thread(target=self._start, daemon=True).start()
        self.extras.callback(self._daemon.stop)

    def _start(self) -> None:
        with contextlib.suppress(SupervisorError):
            self._daemon.start()
        error = self._daemon._ended.exception()  # blocks until it is over
        if isinstance(error, SupervisorError):
            self.error, self.text, self.status = type(error).__name__, str(error), error.cli_status
        else:
            self.status = 0

    def stop(self) -> None:
        threading.Thread(target=self._daemon.stop).start()

    def seal(self) -> None:
        until(self._daemon._ready.done)
        self._daemon.seal()

    def resume(self) -> None:
        with contextlib.suppress(SupervisorError):
            self._daemon.resume()


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
with Sink(sys.stderr, "json") as sink, Daemon(profile, replace(hooks, observers=(sink,))) as daemon:
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
        spec.write_text(SPEC.format(tests=str(FAKE.parent), name=fault.name, tmp=str(tmp)))
        if fault.stage == "host":
            argv = [sys.executable, "-c", HOST]
        elif fault.stage == "run":
            argv = [sys.executable, "-m", "supervisor", "run", f"{spec}:deployment", "--log-format", "json"]
        else:
            options = [self._fill(word) for word in fault.options]
            if fault.under or fault.act in ("close log", "ignore log"):  # the log does not tell where it serves
                self.fixed_port = free_port("127.0.0.1")
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
        return word.replace("{free}", str(free_port("127.0.0.1")))

    def _read(self) -> None:
        assert self.process.stderr
        while self.reading and (line := self.process.stderr.readline()):
            self.last = line if line.strip() else self.last
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


@contextmanager
def scene(fault: Fault, tmp: Path, backend: str) -> Iterator[Scene]:
    """A scene for a row, and the proof that it leaves nothing behind: no process, port, descriptor or thread."""
    if fault.prepare:
        fault.prepare(tmp)
    as_process = fault.stage in ("exec", "run", "host")
    before = children(), threads_running(), descriptors_held()
    if as_process:
        _adopt_orphans(True)
    try:
        with ExitStack() as stack:
            found: Scene
            if as_process:
                found = Command(fault, tmp)
            elif fault.stage == "daemon":
                found = InDaemon(fault, tmp)
            else:
                found = Api(fault, tmp, stack.enter_context(start_blocking_portal(backend)))
            with found.extras:
                found.begin()
                try:
                    yield found
                finally:
                    if not found.ended and not as_process:
                        found.stop()
                        until(lambda: found.ended)
        left = leftovers(found, *before)
        assert not left, f"left behind: {left}"
    finally:
        if as_process:
            _adopt_orphans(False)


def leftovers(scene: Scene, processes: set[int], threads: set[str], descriptors: list[str]) -> list[str]:
    """What is still there of a scene, once it had a moment (a guardian takes one)."""

    def look() -> list[str]:
        for pid in children() - processes:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        return [
            *(f"process {pid}" for pid in sorted((children() - processes) | set(_marked(scene.tmp)))),
            *(f"port {port}" for port in sorted(scene.ports) if not _free(port)),
            *(f"thread {name}" for name in sorted(threads_running() - threads)),
            *(f"descriptor {name}" for name in descriptors_held() if name not in descriptors),
        ]

    ends = time.monotonic() + LEFT_S
    while (left := look()) and time.monotonic() < ends:
        time.sleep(0.01)
    return left


def _marked(tmp: Path) -> Iterator[int]:
    mark = f"{TOKEN}={tmp}\0".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int(entry.name) != os.getpid() and mark in (entry / "environ").read_bytes():
                yield int(entry.name)


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that linger are no listener
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen()
        except OSError:
            return False
    return True


def threads_running() -> set[str]:
    # Trio keeps its idle worker threads for 10 s, for the whole process.
    return {f"{t.name} {t.ident}" for t in threading.enumerate() if not t.name.startswith("Trio thread")}


def descriptors_held() -> list[str]:
    """What this process holds open, with the target, so that a reused number shows."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own
            target = os.readlink(f"/proc/self/fd/{fd}")
            if not target.endswith("/fd"):
                found.append(f"{fd} {target}")
    return found


def _adopt_orphans(on: bool) -> None:
    """Whether orphans of our processes become our children, guardians and grandchildren included: then we see them."""
    assert ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, int(on), 0, 0, 0) == 0


# What is done to a scene, by name


def _kill(scene: Scene) -> None:
    os.kill(scene.pid, signal.SIGKILL)


def _freeze(scene: Scene) -> None:
    os.kill(scene.pid, signal.SIGSTOP)


def _blink(scene: Scene) -> None:
    _freeze(scene)
    time.sleep(0.3)
    os.kill(scene.pid, signal.SIGCONT)


def _kill_and_stop(scene: Scene) -> None:
    _kill(scene)
    scene.wait("child.restarting")
    scene.stop()


def _suspend(scene: Scene) -> None:
    os.kill(scene.supervisor, signal.SIGSTOP)
    time.sleep(1.2)
    os.kill(scene.supervisor, signal.SIGCONT)


def _suspend_all(scene: Scene) -> None:
    _freeze(scene)
    _suspend(scene)
    os.kill(scene.pid, signal.SIGCONT)


def _squat(scene: Scene) -> None:
    command = [*fake_profile().command[:-1], str(next(iter(scene.ports)))]
    other = scene.extras.enter_context(subprocess.Popen(command, stderr=subprocess.DEVNULL))
    scene.extras.callback(other.kill)


def _kill_guardian(_: Scene) -> None:
    (guardian,) = [pid for pid in children() if b"WARMBOOT_LIFE" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(guardian, signal.SIGKILL)


def ask(url: str, limit_s: float = 10.0) -> httpx.Response:
    """One question to the server."""
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    return httpx.post(f"{url}/v1/chat/completions", json=body, trust_env=False, timeout=limit_s)


def _ask(scene: Scene) -> None:
    with contextlib.suppress(httpx.TransportError):  # it dies of it
        ask(scene.url)


def _ask_forever(scene: Scene) -> None:
    def wait() -> None:
        with contextlib.suppress(httpx.TransportError):
            ask(scene.url, LIMIT_S)

    thread = threading.Thread(target=wait)
    thread.start()
    scene.extras.callback(thread.join)
    until(lambda: any(slot["is_processing"] for slot in httpx.get(f"{scene.url}/slots", trust_env=False).json()))


def _close_log(scene: Scene) -> None:
    assert isinstance(scene, Command) and scene.process.stderr
    scene.reading = False
    scene._reader.join()  # it reads one more line: there are many
    scene.process.stderr.close()


def _ignore_log(scene: Scene) -> None:
    assert isinstance(scene, Command)
    scene.reading = False
    scene._reader.join()


def _drift(scene: Scene) -> None:
    (scene.tmp / "drift").touch()


def _unhealthy(scene: Scene) -> None:
    until(lambda: httpx.get(f"{scene.url}/health", trust_env=False).status_code == 500)


ACTS: Mapping[str, Callable[[Scene], None]] = {
    "": lambda _: None,
    "hold port": lambda _: None,  # was done by `{held}`
    "nothing": lambda _: None,
    "kill": _kill,
    "term": lambda scene: os.kill(scene.pid, signal.SIGTERM),
    "freeze": _freeze,
    "freeze first": lambda _: None,  # was done before the stop
    "blink": _blink,
    "stop": lambda scene: scene.stop(),
    "kill and stop": _kill_and_stop,
    "kill supervisor": lambda scene: os.kill(scene.supervisor, signal.SIGKILL),
    "suspend supervisor": _suspend,
    "suspend all": _suspend_all,
    "squat": _squat,
    "kill guardian": _kill_guardian,
    "ask": _ask,
    "ask forever": _ask_forever,
    "close log": _close_log,
    "ignore log": _ignore_log,
    "drift": _drift,
    "unhealthy": _unhealthy,
}
AT_SEAL = frozenset({"drift", "nothing", "unhealthy"})  # done while sealed, so that the resume finds it
FIRST = frozenset({"ask forever"})  # done before the seal
