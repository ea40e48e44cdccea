"""The golden answer in a lifecycle: what a mismatch does to a resume, on the fake server and on a real engine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import anyio
import pytest

from hooks.golden.generation import Generation
from hooks.golden.step import Golden, GoldenMismatch
from hooks.warmup.steps import Text
from supervisor import Daemon, Hooks, Profile, Restart, State, Supervised, Timeouts, supervise
from supervisor import events as ev
from supervisor.engines import embedded
from supervisor.errors import StepFailed
from support import ROOT, Recorder, fake_profile, is_in
from tools.serve import running_fake

pytestmark = pytest.mark.anyio


# ------------------------------------------------------------------------------------------------ the lifecycle


def hooks_of(*questions: Golden, seen: Recorder) -> Hooks:
    return Hooks(
        before_seal=tuple(golden.record for golden in questions),
        after_resume=tuple(golden.replay for golden in questions),
        observers=(seen,),
    )


def points(seen: Recorder) -> list[tuple[str, str]]:
    return [(event.point, event.step) for event in seen.of(ev.StepPassed)]


@pytest.mark.parametrize("faults", [(), ("--logprob-drift", "0.5")], ids=["other-words", "other-logprobs"])
async def test_a_drifted_child_is_replaced_at_the_resume(faults: tuple[str, ...], tmp_path: Path) -> None:
    """Under `on-resume`: found by the replay, told, cold-started in place; the recording serves later resumes."""
    seen, drift = Recorder(), tmp_path / "drift"
    profile = fake_profile(
        "--answer-drift-file", str(drift), *faults, restart=Restart(policy="on-resume", backoff_s=0.01)
    )  # fmt: skip
    async with anyio.create_task_group() as tasks:
        hooks = hooks_of(Golden(), Golden.image(), seen=seen)
        server: Supervised = await tasks.start(supervise, profile, hooks)
        old = server.pid
        await server.seal()
        drift.touch()
        await server.resume()
        assert is_in(server, State.READY)
        assert server.pid != old
        refused = seen.one(ev.StepFailed)
        after = seen.names[seen.names.index("step.failed") :]
        await server.seal()
        await server.resume()
        tasks.cancel_scope.cancel()
    assert (refused.point, refused.step) == ("after_resume", "golden text replay")
    assert "instead of" in refused.reason
    story = [name for name in after if name in {"step.failed", "child.exited", "child.restarting", "child.ready"}]
    assert story[:4] == ["step.failed", "child.exited", "child.restarting", "child.ready"]
    assert len(seen.of(ev.ChildSpawned)) == 2
    record = [("before_seal", "golden text record"), ("before_seal", "golden image record")]
    replay = [("after_resume", "golden text replay"), ("after_resume", "golden image replay")]
    assert points(seen) == [*record, *record, *replay]


async def test_a_broken_vision_tower_alone_is_found(tmp_path: Path) -> None:
    """The text comes back right, the image does not: the image's replay says so."""
    seen = Recorder()
    hooks = hooks_of(Golden(), seen=seen)
    image = Golden.image()
    async with anyio.create_task_group() as tasks:
        server: Supervised = await tasks.start(
            supervise, fake_profile("--answer-drift-file", str(tmp_path / "drift")), hooks
        )
        await server.seal()
        await image.record(server.child)
        await server.resume()
        (tmp_path / "drift").touch()
        with pytest.raises(GoldenMismatch, match="token 1 is 'Well,' instead of 'A'") as caught:
            await image.replay(server.child)
        tasks.cancel_scope.cancel()
    assert (caught.value.expected, caught.value.seen) == ("A red square.", "Well, something else.")


def test_without_a_budget_the_resume_raises(tmp_path: Path) -> None:
    """On a Daemon without restarts, the resume raises StepFailed with both answers, and the server is gone."""
    seen, drift = Recorder(), tmp_path / "drift"
    daemon = Daemon(fake_profile("--answer-drift-file", str(drift)), hooks_of(Golden(), seen=seen))
    daemon.start()
    daemon.seal()
    drift.touch()
    with pytest.raises(StepFailed) as caught:
        daemon.resume()
    assert is_in(daemon, State.FAILED)
    daemon.stop()
    assert (caught.value.point, caught.value.step) == ("after_resume", "golden text replay")
    assert "token 1 is 'Well,' instead of 'OK'" in caught.value.reason
    assert "Expected: 'OK'. Seen: 'Well, something else.'" in caught.value.reason
    assert "child.restarting" not in seen.names


async def test_a_shaky_server_is_not_sealed() -> None:
    """A record that fails refuses the seal; the child serves on."""
    seen = Recorder()
    async with anyio.create_task_group() as tasks:
        server: Supervised = await tasks.start(
            supervise, fake_profile("--random-answers"), hooks_of(Golden(), seen=seen)
        )
        with pytest.raises(StepFailed, match="does not repeat itself"):
            await server.seal()
        assert is_in(server, State.READY)
        tasks.cancel_scope.cancel()


async def test_nothing_stays_open_after_a_record() -> None:
    """No socket of ours outlives a Step: a snapshot would hold it."""
    golden = Golden.image()
    with running_fake() as child:
        before = len(os.listdir("/dev/fd"))
        await golden.record(child)
        await golden.replay(child)
        assert len(os.listdir("/dev/fd")) == before


# ------------------------------------------------------------------------------------------------ the real engine


def engine_profile(model: Path) -> Profile:
    return embedded.profile(model=model, threads=1, timeouts=Timeouts(start_s=120, stall_s=60, step_s=60, resume_s=30))


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The embedded model, written out if need be; the engine's process finds the package wherever it runs."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    path = embedded.model_path()
    embedded.assemble(path)
    return path


@pytest.mark.engine
@pytest.mark.timeout(240)
def test_damaged_weights_are_found_on_a_real_engine(model: Path, tmp_path: Path) -> None:
    """A real model repeats its answer over a seal, at once and after other work; with damaged weights it does not."""
    seen, golden = Recorder(), Golden()
    exact = Golden(tolerance=0.0, name="exact")  # to the last bit, while nothing else runs
    with Daemon(engine_profile(model), hooks_of(exact, seen=seen)) as daemon:
        anyio.run(golden.record.__call__, daemon.supervised.child)
        for _ in range(2):
            daemon.seal()
            anyio.run(Text(max_tokens=8).__call__, daemon.supervised.child)
            daemon.resume()
    assert points(seen).count(("after_resume", "exact replay")) == 2
    recording = golden._recording.answer
    assert isinstance(recording, Generation)
    assert len(recording.tokens) == 8
    damaged = tmp_path / "damaged.gguf"
    shutil.copyfile(model, damaged)
    size = damaged.stat().st_size
    for place, damage in ((size // 2, shift), (size * 7 // 8, zero)):
        with damaged.open("r+b") as file:
            file.seek(place)
            sound = file.read(1 << 20)
            file.seek(place)
            file.write(damage(sound))
        with pytest.raises(StepFailed, match="golden text replay") as caught:
            Daemon(engine_profile(damaged), Hooks(warmup=(golden.replay,))).start()
        assert recording.text in str(caught.value)
        with damaged.open("r+b") as file:
            file.seek(place)
            file.write(sound)


def shift(data: bytes) -> bytes:
    return data[1:] + data[:1]


def zero(data: bytes) -> bytes:
    return bytes(len(data))
