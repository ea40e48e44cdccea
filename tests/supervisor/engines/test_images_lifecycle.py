"""The image server under the lifecycle: the real program before a pipeline in plain Python; faults: the matrix."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from fakes.images import supervised
from hooks.auth import AuthCheck
from hooks.golden import Golden
from hooks.warmup import Draw, Ping
from supervisor import Hooks, State, Supervised, supervise
from supervisor import events as ev
from support import Recorder, is_in

pytestmark = pytest.mark.anyio


async def test_a_whole_life(tmp_path: Path) -> None:
    """Loaded, warmed, closed to strangers, sealed with a golden picture, resumed in place, stopped with code 0."""
    seen, golden = Recorder(), Golden(size="64x64")
    hooks = Hooks(
        warmup=(Draw(), AuthCheck()),
        before_seal=(golden.record,),
        after_resume=(golden.replay,),
        liveness=(Ping(),),
        observers=(seen,),
    )
    async with anyio.create_task_group() as tasks:
        server: Supervised = await tasks.start(supervise, supervised(tmp_path / "model"), hooks)
        pid = server.pid
        await server.seal()
        await server.resume()
        assert is_in(server, State.READY)
        assert server.pid == pid
        tasks.cancel_scope.cancel()
    assert [event.step for event in seen.of(ev.WarmupPassed)] == ["draw", "auth"]
    assert seen.one(ev.ChildExited).exit_code == 0
    assert not seen.one(ev.TeardownFinished).escalated
    stages = [line for line in seen.lines() if line.startswith(("loading: ", "ready: ", "stopping"))]
    assert [line.partition(" took")[0] for line in stages[:2]] == ["loading: imports", "loading: imports"]
    assert stages[-2].startswith("ready: serving tiny")
    assert stages[-1] == "stopping: 0 running, 0 waiting"
