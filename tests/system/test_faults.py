"""The fault matrix, played row by row on real processes: how each fault ends, and that nothing is left behind."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import pytest

from conftest import children
from supervisor import SupervisorError
from supervisor.linux import processes
from support import until
from system.faults import MATRIX, MOMENTS, TOKEN, Fault
from system.stages import Scene, scene
from system.stages.acts import ACTS, AT_SEAL, FIRST, ask
from system.stages.left_behind import descriptors_held, leftovers, threads_running
from tools.fault_table import JSON, PAGE, render
from tools.sections import section

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not processes.AVAILABLE, reason="there is no /proc here")]

ENTERED = {"before spawn": "child.starting", "loading": "child.spawned", "warmup": "child.up"}
results: dict[str, dict[str, Any]] = {}


@pytest.fixture(scope="module", autouse=True)
def written_down() -> Iterator[None]:
    """What was seen goes to the file that FAULTS_JSON names, once every row has been played."""
    yield
    path = os.environ.get("FAULTS_JSON")
    if path and results.keys() >= {fault.name for fault in MATRIX}:
        about = {
            "date": datetime.now(UTC).date().isoformat(),
            "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.release().partition('-')[0]}",
            "python": platform.python_version(),
        }
        rows = [results[fault.name] for fault in MATRIX]
        Path(path).write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def played_on() -> Iterator[Any]:
    """Every row; those of the API take turns on the two event loops, and stops run on both."""
    turns = cycle(("asyncio", "trio"))
    for fault in MATRIX:
        stops = fault.moment == "stopping" or "stop" in fault.act
        if fault.stage != "api":
            yield pytest.param(fault, "asyncio", id=fault.name)
        for backend in () if fault.stage != "api" else ("asyncio", "trio") if stops else (next(turns),):
            yield pytest.param(fault, backend, id=f"{fault.name}-{backend}")


@pytest.mark.parametrize(("fault", "backend"), list(played_on()))
def test_a_fault(fault: Fault, backend: str, tmp_path: Path) -> None:
    """Outcome, error and exit code are those of the matrix; no process, port, descriptor or thread is left."""
    with scene(fault, tmp_path, backend) as played:
        outcome, seconds = play(fault, played)
        error, text, status = played.error, played.text, played.status
    seen = {"outcome": outcome, "error": error, "status": status}
    assert seen == {"outcome": fault.outcome, "error": fault.error, "status": fault.status}, text
    assert fault.says in text
    if played.events:
        assert len(played.named("child.spawned")) == fault.lives
    if fault.escalated is not None:
        assert next(event["escalated"] for event in played.named("teardown.finished")) is fault.escalated
    row = {"row": fault.name, "fault": fault.fault, "moment": fault.moment, **seen, "seconds": round(seconds, 3)}
    results[fault.name] = max(results.get(fault.name, row), row, key=lambda told: float(told["seconds"]))


def play(fault: Fault, on: Scene) -> tuple[str, float]:
    """Brings the moment about, does what the row says, and looks how it ends: (outcome, seconds since the fault)."""
    refused = False
    if fault.moment in ENTERED:
        if not fault.under:
            until(lambda: on.named(ENTERED[fault.moment]) or on.ended)
        since = time.monotonic()
        ACTS[fault.act](on)
    else:
        on.wait("child.ready")
        if fault.act in FIRST:
            ACTS[fault.act](on)
        since = time.monotonic()
        if fault.moment in ("sealed", "resumed"):
            refused = not sealed(on)
        if fault.moment == "resumed" and fault.act not in AT_SEAL:
            on.resume()
        if fault.moment == "stopping":
            if fault.act == "freeze first":
                ACTS["freeze"](on)
            on.stop()
            until(lambda: on.named("child.stopping") or on.ended)
        since = since if refused else time.monotonic()
        if fault.act not in FIRST:
            ACTS[fault.act](on)
        going_on = fault.moment == "sealed" or fault.act in AT_SEAL
        if going_on and not refused and not on.named("child.stopping") and fault.act not in ("stop", "kill supervisor"):
            on.resume()
    if fault.outcome != "recovered" and not refused:
        until(lambda: on.ended, f"the end of {on.events[-5:]}")
        ended_s = time.monotonic() - since
        if not on.error:
            return "stopped", ended_s
        return "failed" if on.named("child.ready") else "refused", ended_s
    served_s = until_serving(fault, on) - since
    on.stop()
    until(lambda: on.ended, f"the end of {on.events[-5:]}")
    return "refused" if refused else "recovered", served_s


def sealed(on: Scene) -> bool:
    """Whether the seal was granted."""
    try:
        on.seal()
    except SupervisorError as refusal:
        on.error, on.text = type(refusal).__name__, str(refusal)
        return False
    return True


def until_serving(fault: Fault, on: Scene) -> float:
    """Waits until the server of the last life serves, and for the row's proof; returns when that was."""
    if on.fixed_port:
        until(lambda: healthy(on.url))
    else:
        until(lambda: len(on.named("child.spawned")) >= fault.lives or on.ended)
        until(lambda: on.ended or serving(on))
    if fault.proof:
        told = ("line", "detail", "event")
        until(lambda: any(fault.proof in str(e.get(part)) for e in list(on.events) for part in told), fault.proof)
    if fault.pulse:
        beats = on.tmp / "pulse"
        before = len(beats.read_bytes()) if beats.exists() else 0
        until(lambda: on.ended or (beats.exists() and len(beats.read_bytes()) > before + 3), "more inferences")
    if not any("hang" in flag for flag in fault.flags):
        health = fault.profile.get("health")
        asked = ask(on.url, model=health and health.model_id, dialect=fault.profile.get("dialect"))
        assert asked.status_code == 200
    return time.monotonic()


def serving(on: Scene) -> bool:
    """Whether the newest child is READY and healthy."""
    states = [
        event["event"]
        for event in list(on.events)
        if event["event"] in ("child.spawned", "child.ready", "child.resumed")
    ]
    return states[-1] != "child.spawned" and healthy(on.url)


def healthy(url: str) -> bool:
    """Whether health is green."""
    try:
        return httpx.get(f"{url}/health", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def test_the_matrix_is_whole() -> None:
    """At least 50 rows, each name once, every moment of a life among them."""
    assert len(MATRIX) >= 50
    assert len({fault.name for fault in MATRIX}) == len(MATRIX)
    assert {fault.moment for fault in MATRIX} == set(MOMENTS)


def test_what_is_left_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of the row, its port, a descriptor and a thread are each told when they stay."""
    monkeypatch.setattr("system.stages.left_behind.LEFT_S", 0.05)
    before = children(), threads_running(), descriptors_held()
    on = Scene(MATRIX[0], tmp_path)
    assert leftovers(on, *before) == []
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name="planted")
    env = {**os.environ, TOKEN: str(tmp_path)}
    with socket.create_server(("127.0.0.1", 0)) as held, subprocess.Popen(["sleep", "60"], env=env) as process:
        thread.start()
        try:
            on.events.append({"event": "child.spawned", "argv": ["x", "--port", str(held.getsockname()[1])]})
            left = leftovers(on, *before)
        finally:
            done.set()
            thread.join()
            process.kill()
    kinds = [f"process {process.pid}", f"port {held_port(on)}", "thread planted", "descriptor"]
    assert len(left) == len(kinds)
    assert all(what.startswith(kind) for what, kind in zip(left, kinds, strict=True))
    assert leftovers(on, *before) == []


def held_port(on: Scene) -> int:
    """The only port of a scene."""
    (port,) = on.ports
    return port


def test_table_file_and_matrix_agree() -> None:
    """The table of docs/faults.md says what the file says, which has the matrix's rows and outcomes in order."""
    told = json.loads(JSON.read_text(encoding="utf-8"))
    wanted = [
        {
            "row": f.name,
            "fault": f.fault,
            "moment": f.moment,
            "outcome": f.outcome,
            "error": f.error,
            "status": f.status,
        }
        for f in MATRIX
    ]
    assert [{key: value for key, value in row.items() if key != "seconds"} for row in told["rows"]] == wanted, (
        "make faults"
    )
    assert section(PAGE.read_text(encoding="utf-8"), "faults") == render(told), "make faults"
