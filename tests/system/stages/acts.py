"""What is done to a scene, by the name that a row gives it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import httpx

from conftest import children
from supervisor.dialect import Dialect
from supervisor.linux import files, processes
from support import LIMIT_S, fake_profile, until
from system.stages.command import Command
from system.stages.scene import Scene


def _kill(scene: Scene) -> None:
    os.kill(scene.pid, signal.SIGKILL)


def _kill_vital(scene: Scene) -> None:
    session = [pid for pid in processes.pids() if (stat := processes.stat(pid)) and stat.session == scene.pid]
    vital = re.compile("|".join(scene.fault.profile["vital"]))
    os.kill(next(pid for pid in session if vital.search(" ".join(files.argv(pid)))), signal.SIGKILL)


def _of_a_router(scene: Scene, *, does: str, model: str) -> None:
    """Kill, unload, or ask a router's model."""
    if does == "kill":
        session = [pid for pid in processes.pids() if (stat := processes.stat(pid)) and stat.session == scene.pid]
        os.kill(next(pid for pid in session if model in files.argv(pid)), signal.SIGKILL)
    elif does == "unload":
        httpx.post(f"{scene.url}/models/unload", json={"model": model}, trust_env=False).raise_for_status()
    else:
        ask(scene.url, model=model).raise_for_status()


def _fall_asleep(scene: Scene) -> None:
    """Wait until the watchdog has seen the engine asleep for longer than two of its inferences are apart."""
    scene.wait("engine.asleep")
    time.sleep(1.2)
    assert not scene.named("engine.awake")


def _kill_worker(scene: Scene) -> None:
    os.kill(int((scene.tmp / "worker").read_text()), signal.SIGKILL)


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


def _stop_again(scene: Scene) -> None:
    time.sleep(1.2)  # a signal within a second of the first is the same request
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


def ask(url: str, limit_s: float = 10.0, *, model: str | None = None, dialect: Dialect | None = None) -> httpx.Response:
    """The first of its dialect's requests that generate, else a chat; of a router's, one of its models."""
    request = (dialect or Dialect()).generating[0]
    body = {"model": model} if model else {}
    return httpx.post(f"{url}{request.path}", json={**body, **request.body}, trust_env=False, timeout=limit_s)


def _ask(scene: Scene) -> None:
    with contextlib.suppress(httpx.TransportError):  # it dies of it
        ask(scene.url)


def _flip(scene: Scene) -> None:
    """A bit of the GPU memory that was put aside."""
    httpx.post(f"{scene.url}/damage", trust_env=False).raise_for_status()


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
    "kill vital": _kill_vital,
    "kill worker": _kill_worker,
    "flip": _flip,
    "kill model": partial(_of_a_router, does="kill", model="sea"),
    "unload": partial(_of_a_router, does="unload", model="sea"),
    "evict": partial(_of_a_router, does="ask", model="hill"),
    "fall asleep": _fall_asleep,
    "term": lambda scene: os.kill(scene.pid, signal.SIGTERM),
    "freeze": _freeze,
    "freeze first": lambda _: None,  # was done before the stop
    "blink": _blink,
    "stop": lambda scene: scene.stop(),
    "stop again": _stop_again,
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
