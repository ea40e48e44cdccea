"""Cold-start overhead: a supervised start of the real engine minus a bare one, in turns; import time; idle memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict

from bench.rows import Bar, Outcome, Peer, Row, median
from bench.setting import FAKE, ROOT, Ports, Setting, status_kib
from bench.start import bare_engine, until_healthy, write_model
from bench.subject import ours_env
from bench.supervisors import NAMES, SUPERVISORD, running

# What a program imports that uses the peer, or is it.
IMPORTS = {"mirakuru": "mirakuru", "circus": "circus.arbiter", SUPERVISORD: "supervisor.supervisord"}


def run(setting: Setting) -> Outcome:
    """Rows for overhead, import and memory."""
    write_model()
    bare, ours = [], []
    for _ in range(setting.pick(full=15, quick=2, tiny=1)):
        with bare_engine() as (_, took_s):
            bare.append(took_s)
        ours.append(_ours())
    imports: dict[str, list[float]] = defaultdict(list)
    for _ in range(setting.pick(full=20, quick=3, tiny=1)):
        imports["warmboot"].append(_import_s(sys.executable, "supervisor"))
        python = setting.peer("python")
        for name, module in IMPORTS.items() if python else ():
            assert python
            imports[name].append(_import_s(python, module))
    return Outcome(rows=[_overhead(bare, ours), _imports(imports), _memory(setting, ours)])


def _ours() -> dict[str, float]:
    argv = (sys.executable, "-m", "bench.subjects.cold")
    done = subprocess.run(argv, env=ours_env(), cwd=ROOT, check=True, capture_output=True, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def _import_s(python: str, module: str) -> float:
    program = f"import time; a = time.perf_counter(); import {module}; print(time.perf_counter() - a)"
    cwd = ROOT if python == sys.executable else "/"
    return float(subprocess.run((python, "-c", program), cwd=cwd, check=True, capture_output=True, text=True).stdout)


def _overhead(bare: list[float], ours: list[dict[str, float]]) -> Row:
    beyond = [run["ready_s"] - run["import_s"] for run in ours]
    value, bar = (median(beyond) - median(bare)) * 1000, Bar(limit=30)
    before = median([run["spawned_s"] - run["import_s"] for run in ours]) * 1000
    after = (median([run["ready_s"] - run["spawned_s"] for run in ours]) - median(bare)) * 1000
    flags = median([run["profile_s"] for run in ours]) * 1000
    parts = f"{before:.0f} ms before the spawn (the profile {flags:.0f} ms of it), {after:.0f} ms after"
    spread = (max(bare) - min(bare)) * 1000
    return Row(
        benchmark="cold start", what="supervised minus bare, real engine, beyond the import", unit="ms", ours=value,
        bar=bar, note=f"medians of {len(bare)}; bare: {median(bare):.2f} s, from {min(bare):.2f} to {max(bare):.2f} s",
        reason="" if bar.met(value) else f"{parts}; the bare starts spread over {spread:.0f} ms",
    )  # fmt: skip


def _imports(imports: dict[str, list[float]]) -> Row:
    peers = tuple(
        Peer(name=name, value=median(found) * 1000 if (found := imports.get(name)) else None,
             note="" if imports.get(name) else "not installed")
        for name in IMPORTS
    )  # fmt: skip
    value = median(imports["warmboot"]) * 1000
    reason = "" if value <= 250 else f"fastest of {len(imports['warmboot'])}: {min(imports['warmboot']) * 1000:.0f} ms"
    return Row(
        benchmark="cold start", what="import supervisor", unit="ms", ours=value, peers=peers, bar=Bar(limit=250),
        reason=reason,
    )  # fmt: skip


def _memory(setting: Setting, ours: list[dict[str, float]]) -> Row:
    peers = []
    for name, program in zip(NAMES, ("supervisord", "circusd"), strict=True):
        value = None
        if setting.peer(program):
            port = Ports().next()
            argv = [sys.executable, "-I", "-S", str(FAKE), "--port", str(port)]
            with running(name, setting, argv) as pid:
                until_healthy(port)
                value = status_kib(pid, "VmRSS") / 1024
        peers.append(Peer(name=name, value=value, note="" if value else "not installed"))
    value = median([run["idle_mib"] for run in ours])
    return Row(
        benchmark="cold start", what="memory of an idle supervisor", unit="MiB", ours=value, peers=tuple(peers),
        bar=Bar(limit=60), note="resident, after READY, the HTTP client included",
        reason="" if value <= 60 else "the interpreter, anyio and httpx",
    )  # fmt: skip
