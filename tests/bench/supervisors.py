"""supervisord and circusd as programs: configurations, start, end."""

from __future__ import annotations

import shlex
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from bench.setting import Ports, Setting
from bench.subject import clean_env

SUPERVISORD, CIRCUS = "supervisord", "circus"
NAMES: Final = (SUPERVISORD, CIRCUS)


@contextmanager
def running(
    name: str,
    setting: Setting,
    argv: Sequence[str],
    *,
    output: Path | None = None,
    port: int = 0,
    end: signal.Signals = signal.SIGTERM,
    **options: Any,
) -> Iterator[int]:
    """A peer that supervises one program (or `numprocs` of it); gives its pid.

    Args:
        name: which one.
        setting: of the run.
        argv: the program.
        output: where the peer captures the program's stdout; None: nowhere.
        port: of the peer's own control endpoint; 0: none for supervisord, any for circus.
        end: how the peer is ended; KILL only when its program has ended before.
        options: further settings of the program's section.
    """
    program = setting.peer({SUPERVISORD: "supervisord", CIRCUS: "circusd"}[name])
    assert program
    folder = setting.file(f"{name}-{time.monotonic_ns()}/conf").parent
    write = _supervisord if name == SUPERVISORD else _circus
    (folder / "conf").write_text(write(folder, shlex.join(argv), output, port, options))
    command = [program, "-n", "-c", "conf"] if name == SUPERVISORD else [program, "conf"]
    with (folder / "own.log").open("wb") as log:
        peer = subprocess.Popen(command, cwd=folder, env=clean_env(), stdout=log, stderr=log)
    try:
        yield peer.pid
    finally:
        peer.send_signal(end)
        try:
            peer.wait(15)
        except subprocess.TimeoutExpired:
            peer.kill()
            peer.wait()


def _supervisord(folder: Path, command: str, output: Path | None, port: int, options: dict[str, Any]) -> str:
    control = f"[inet_http_server]\nport=127.0.0.1:{port}\n" if port else ""
    rpc = "[rpcinterface:supervisor]\nsupervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n"
    own = {"command": command, "stderr_logfile": "NONE", "stdout_logfile": output or "NONE"}
    if "numprocs" in options:
        own["process_name"] = "%(process_num)d"
    body = "".join(f"{name}={value}\n" for name, value in (own | options).items())
    return (
        f"[supervisord]\nlogfile={folder}/log\npidfile={folder}/pid\nchildlogdir={folder}\n{control}"
        f"{rpc if port else ''}[program:child]\n{body}"
    )


def _circus(_: Path, command: str, output: Path | None, port: int, options: dict[str, Any]) -> str:
    ports = Ports()
    stream = "" if output is None else f"stdout_stream.class = FileStream\nstdout_stream.filename = {output}\n"
    count = options.pop("numprocs", 1)  # of its own numprocs, 0.19 starts one and no more
    body = "".join(f"{name} = {value}\n" for name, value in options.items())
    body = f"cmd = {command}\ncopy_env = True\n{stream}{body}"
    names = ["child", *(f"child{number}" for number in range(2, count + 1))]
    return (
        f"[circus]\nendpoint = tcp://127.0.0.1:{port or ports.next()}\n"
        f"pubsub_endpoint = tcp://127.0.0.1:{ports.next()}\n" + "".join(f"[watcher:{name}]\n{body}" for name in names)
    )


def until_file(path: Path, *, limit_s: float) -> bool:
    """Waits until a file is there."""
    ends = time.monotonic() + limit_s
    while not path.exists():
        if time.monotonic() > ends:
            return False
        time.sleep(0.01)
    return True
