"""Stop: from the request until nothing is left, on an idle real engine and on a fake that ignores TERM.

"bare" is `terminate()`, `wait()`, and `kill()` after the grace period. supervisord and circus stop through their own
control endpoints.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import xmlrpc.client
from collections import defaultdict

from bench.rows import Bar, Outcome, Peer, Row, median, percentile
from bench.setting import FAKE, PROGRAMS, Ports, Setting
from bench.start import bare_engine, until_healthy, write_model
from bench.subject import Subject, clean_env
from bench.supervisors import CIRCUS, SUPERVISORD, running

GRACE_S = 1  # supervisord takes whole seconds
KILL = signal.SIGKILL  # for a peer whose program was stopped
IDLE, IGNORES = "", "--ignore-sigterm"


def run(setting: Setting) -> Outcome:
    """Rows for the engine and the fakes."""
    took: dict[tuple[str, str], list[float]] = defaultdict(list)
    write_model()
    with Subject.ours("stop") as ours:
        for _ in range(setting.pick(full=10, quick=1, tiny=1)):
            took["engine", "ours"].append(ours.ask(server="engine", grace_s=10)["took_s"])
            took["engine", "bare"].append(_bare_engine())
        for _ in range(setting.pick(full=20, quick=2, tiny=1)):
            for flag in (IDLE, IGNORES):
                took[flag, "ours"].append(ours.ask(server=flag, grace_s=GRACE_S)["took_s"])
                took[flag, "bare"].append(_bare(flag))
        for _ in range(setting.pick(full=5, quick=1, tiny=0)):
            for flag in (IDLE, IGNORES):
                if setting.peer("supervisord"):
                    took[flag, SUPERVISORD].append(_supervisord(setting, flag))
                if setting.peer("circusd"):
                    took[flag, CIRCUS].append(_circus(setting, flag))
    return Outcome(rows=_rows(took))


def _command(flag: str, port: int) -> list[str]:
    return [sys.executable, "-I", "-S", str(FAKE), "--port", str(port), *([flag] if flag else [])]


def _bare_engine() -> float:
    with bare_engine() as (engine, _):
        time.sleep(0.2)
        return _end(engine)


def _bare(flag: str) -> float:
    port = Ports().next()
    with subprocess.Popen(_command(flag, port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        until_healthy(port, server)
        time.sleep(0.2)
        return _end(server)


def _end(server: subprocess.Popen[bytes]) -> float:
    asked = time.monotonic()
    server.terminate()
    try:
        server.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
    return time.monotonic() - asked


def _supervisord(setting: Setting, flag: str) -> float:
    ports = Ports()
    port, control = ports.next(), ports.next()
    with running(SUPERVISORD, setting, _command(flag, port), port=control, end=KILL, stopwaitsecs=GRACE_S):
        until_healthy(port)
        time.sleep(1.2)  # until it calls the program RUNNING
        with xmlrpc.client.ServerProxy(f"http://127.0.0.1:{control}/RPC2") as proxy:
            asked = time.monotonic()
            proxy.supervisor.stopProcess("child")
            return time.monotonic() - asked


def _circus(setting: Setting, flag: str) -> float:
    ports = Ports()
    port, control = ports.next(), ports.next()
    python = setting.peer("python")
    assert python
    with running(CIRCUS, setting, _command(flag, port), port=control, end=KILL, graceful_timeout=GRACE_S):
        until_healthy(port)
        argv = (python, "-I", str(PROGRAMS / "circus_stop.py"), str(control))
        done = subprocess.run(argv, env=clean_env(), check=True, capture_output=True, text=True)
        return float(done.stdout)


def _rows(took: dict[tuple[str, str], list[float]]) -> list[Row]:
    def peers(server: str, names: tuple[str, ...], percent: float, beyond_s: float) -> tuple[Peer, ...]:
        found = {name: took.get((server, name)) for name in names}
        return tuple(
            Peer(
                name=name,
                value=None if not samples else (percentile(samples, percent) - beyond_s) * 1000,
                note="" if samples else "not measured",
            )
            for name, samples in found.items()
        )

    every = ("bare", SUPERVISORD, CIRCUS)
    beyond = [late - GRACE_S for late in took[IGNORES, "ours"]]
    worst, bar = max(beyond) * 1000, Bar(limit=20)
    shown = ", ".join(f"{late * 1000:.0f}" for late in beyond)
    return [
        Row(
            benchmark="stop", what="idle real engine, median", unit="ms", ours=median(took["engine", "ours"]) * 1000,
            peers=peers("engine", ("bare",), 50, 0), note=f"{len(took['engine', 'ours'])} stops",
        ),
        Row(
            benchmark="stop", what="idle fake, median", unit="ms", ours=median(took[IDLE, "ours"]) * 1000,
            peers=peers(IDLE, every, 50, 0), note=f"{len(took[IDLE, 'ours'])} stops",
        ),
        Row(
            benchmark="stop", what="fake that ignores TERM, beyond the grace period, longest", unit="ms", ours=worst,
            peers=peers(IGNORES, every, 100, GRACE_S), bar=bar, note=f"grace {GRACE_S} s, {len(beyond)} stops",
            reason="" if bar.met(worst) else f"each: {shown} ms",
        ),
    ]  # fmt: skip
