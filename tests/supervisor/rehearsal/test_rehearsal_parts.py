"""The parts of a rehearsal that need no sandbox: drift, the log's events, verdicts."""

from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from supervisor import Child, Hooks, Profile, events
from supervisor.errors import ProfileError
from supervisor.logs.sink import Sink
from supervisor.rehearsal.bundle import Mount, Program
from supervisor.rehearsal.drift import ASIDE, Weight, drifted_env, staged
from supervisor.rehearsal.log import LoggedEvent, for_people
from supervisor.rehearsal.report import TIMERS, RehearsalReport
from supervisor.rehearsal.request import RehearsalRequest
from supervisor.rehearsal.stages import Stage
from supervisor.rehearsal.subject import of_profile
from supervisor.steps import step
from support import EVENT_KINDS


def weights_in(folder: Path) -> Weight:
    """A weight file with neighbours: a file, a folder, a link."""
    folder.mkdir()
    (folder / "model.gguf").write_bytes(bytes(range(256)) * 40_000)
    (folder / "template.jinja").write_text("template")
    (folder / "more").mkdir()
    (folder / "link").symlink_to("template.jinja")
    return Weight.at(folder / "model.gguf")


@pytest.mark.parametrize("kind", ["weights", "weights-moved", "weights-truncated"])
def test_weights_drift_in_a_copy(tmp_path: Path, kind: str) -> None:
    """The staged copy changes when it is told to; neighbours stay in sight; the real files can be touched by nobody."""
    weight = weights_in(tmp_path / "models")
    real = weight.host.read_bytes()
    mounts, drift = staged([weight], [kind, kind], tmp_path / "stage")
    stage = mounts[0].source
    assert mounts == [
        Mount(source=stage, target=weight.inside.parent),
        Mount(source=weight.host.parent, target=ASIDE / "0", readonly=True),
    ]
    copy = stage / "model.gguf"
    assert copy.read_bytes() == real
    inode = copy.stat().st_ino
    drift()
    match kind:
        case "weights":
            assert copy.stat().st_ino != inode
            assert len(copy.read_bytes()) == len(real)
            assert copy.read_bytes()[: len(real) // 4] == real[: len(real) // 4]
            assert copy.read_bytes() != real
        case "weights-moved":
            assert not copy.exists()
        case "weights-truncated":
            assert copy.stat().st_size == len(real) // 2
    assert weight.host.read_bytes() == real
    links = {name: str((stage / name).readlink()) for name in ("template.jinja", "more", "link")}
    assert links == {name: str(ASIDE / "0" / name) for name in links}


def test_one_drift_of_weights_at_a_time(tmp_path: Path) -> None:
    """A file cannot be moved and truncated both, and a second change could undo the first."""
    with pytest.raises(ProfileError, match="at most one of weights, weights-moved, weights-truncated"):
        staged([weights_in(tmp_path / "models")], ["weights-moved", "weights-truncated"], tmp_path / "stage")


def test_weights_behind_links_and_mounts(tmp_path: Path) -> None:
    """A link leads to the file that drifts, as in a cache of downloads; a mount tells where the sandbox sees it."""
    blob = tmp_path / "blobs" / "abc"
    blob.parent.mkdir()
    blob.touch()
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / "m.gguf").symlink_to("../blobs/abc")
    assert Weight.at(tmp_path / "snapshots" / "m.gguf") == Weight(host=blob, inside=blob)
    mount = Mount(source=tmp_path, target=Path("/models"))
    assert Weight.at(Path("/models/snapshots/m.gguf"), [mount]) == Weight(host=blob, inside=Path("/models/blobs/abc"))


def test_without_drift_of_weights_nothing_is_copied(tmp_path: Path) -> None:
    """The clock and the environment need no copy of 17 GB."""
    mounts, drift = staged([Weight.at(tmp_path / "model.gguf")], ["clock", "env"], tmp_path / "stage")
    drift()
    assert mounts == []
    assert not (tmp_path / "stage").exists()
    assert drifted_env(["clock"], "API_KEY") == {}
    assert drifted_env(["env"], "API_KEY").keys() >= {"HTTP_PROXY", "TZ", "API_KEY"}


def test_drift_needs_weights(tmp_path: Path) -> None:
    """A profile without weights, or with a file that is not there, cannot drift."""
    with pytest.raises(ProfileError, match="names its weights"):
        staged([], ["weights"], tmp_path)
    with pytest.raises(ProfileError, match=r"that are there: .*/model\.gguf is not"):
        staged([Weight.at(tmp_path / "model.gguf")], ["weights"], tmp_path / "stage")


def test_the_bundle_mounts_outer_folders_first(tmp_path: Path) -> None:
    """Inner mounts would vanish under outer ones; the file that holds the environment is for its owner alone."""
    program = Program(argv=("/bin/true",), env={"A": "b=c"}, cwd=tmp_path)
    mounts = [Mount(source=tmp_path, target=Path("/models/gemma/more")), Mount(source=tmp_path, target=Path("/models"))]
    program.write(tmp_path / "bundle", mounts)
    config = json.loads((tmp_path / "bundle" / "config.json").read_text())
    targets = [mount["destination"] for mount in config["mounts"] if mount["type"] == "bind"]
    assert targets == ["/models", "/models/gemma/more"]
    assert config["process"]["env"] == ["A=b=c"]
    assert (tmp_path / "bundle" / "config.json").stat().st_mode & 0o077 == 0


TIMES = {"elapsed_s": 1.0, "unix_s": 1.0}


def logged(*written: events.Event | str) -> list[str]:
    """Lines of the log as the program in the sandbox writes them."""
    out = StringIO()
    with Sink(out, "json") as sink:
        for one in written:
            sink.say(one) if isinstance(one, str) else sink(one)
    return out.getvalue().splitlines()


def test_events_are_read_as_they_are_written() -> None:
    """Name and fields come back, quotes and line breaks too; neither other text nor a server's JSON is an event."""
    reason = "it's \"blank\":\n    see body=''"
    failed = events.StepFailed(**TIMES, point="before_seal", step="golden text record", took_s=0.5, reason=reason)
    ready = '{"event": "child.ready", "level": "info", "timestamp": "now", "elapsed_s": 1}'
    said = events.ChildLog(**TIMES, stream="stderr", line=ready, line_level="info")
    lines = logged(failed, "{}", "[1]", "{", "a line of a program", said)
    event, *others = map(LoggedEvent.of, lines)
    assert event is not None
    assert event.name == "step.failed"
    assert event.fields == {"point": "before_seal", "step": "golden text record", "took_s": 0.5, "reason": reason}
    assert others[:-1] == [None] * 4
    assert others[-1] == LoggedEvent(name="child.log", fields={"stream": "stderr", "line": ready})


def test_the_log_is_shown_to_people() -> None:
    """An event becomes a line for a person, the server's line its own words, and other lines stay as they are."""
    written = (
        events.ChildReady(**TIMES, waited_s=1.0, url="http://h:1", pid=7),
        events.ChildLog(**TIMES, stream="stderr", line="loading {", line_level="info"),
        "App deployed in 1 s",
    )
    ready, line, other = map(for_people(), logged(*written))
    assert re.fullmatch(r" +1\.0+ \[info +\] child\.ready +waited_s=1\.0 url=http://h:1 pid=7", ready)
    assert line.endswith("│ loading {")
    assert other == written[-1]


def test_timers_that_fire_are_seen() -> None:
    """Each event that counts as a timer exists, and the report names it when it comes."""
    by_name = {kind.name: kind for kind in EVENT_KINDS}
    assert set(TIMERS) <= set(by_name)
    report = report_of(*logged(events.ChildUnresponsive(**TIMES, misses=3, detail="no answer")), restore_s=1.0)
    assert report.timers == ("child.unresponsive",)
    assert "child.unresponsive" in screen_of(report)


def screen_of(report: RehearsalReport, width: int = 140) -> str:
    """The report's table as a terminal shows it."""
    screen = StringIO()
    Console(file=screen, width=width).print(report.table())
    return screen.getvalue()


REQUEST = RehearsalRequest(name="x")


def report_of(*lines: str, **fields: Any) -> RehearsalReport:
    """A rehearsal that came to its end."""
    report = RehearsalReport(request=REQUEST, **{"image_bytes": 1, "restore_began": 1.0, "finished": True, **fields})
    for line in lines:
        report.see(line)
    return report


def passed(point: str, step: str, took_s: float = 0.1) -> str:
    """The line of a Step that passed."""
    (line,) = logged(events.StepPassed(**TIMES, point=point, step=step, took_s=took_s))
    return line


GOOD = (
    passed("before_seal", "golden text record"),
    passed("before_seal", "contract"),
    passed("after_resume", "golden text replay"),
)


def test_verdicts_and_exit_codes() -> None:
    """5 is for what a snapshot would not survive; what failed before keeps its own code."""
    good = report_of(*GOOD)
    assert good.exit_status == 0
    told = json.loads(good.to_json())
    assert told["contract"]["verdict"] == "passed"
    assert told["golden"] == {"verdict": "passed", "detail": "golden text replay"}
    assert told["exit_status"] == 0
    assert report_of(*GOOD, healed="it died").exit_status == 5
    assert report_of(*GOOD, strays=("HF_TOKEN",)).exit_status == 5
    assert report_of(*GOOD, finished=False, failure="restore failed", status=1).exit_status == 5
    assert report_of(*GOOD[:2]).exit_status == 5  # recorded, and never asked for again
    assert report_of(GOOD[1]).exit_status == 0  # no model's server: there is no answer to compare
    assert report_of(*GOOD[:2], restore_began=None, finished=False, failure="no checkpoint", status=1).exit_status == 1
    assert RehearsalReport(request=REQUEST, failure="warmup", point="warmup", status=4).exit_status == 4
    assert RehearsalReport(request=REQUEST, failure="contract", point="before_seal", status=4).exit_status == 5
    interrupted = report_of(*GOOD, finished=False, failure="interrupted by SIGHUP", status=129)
    assert interrupted.exit_status == 129
    assert "not rehearsed to its end" in str(interrupted.table().title)


def test_an_image_that_nobody_searched_is_not_called_clean() -> None:
    """Without a search the report has no row about stray secrets; with one that found nothing it says so."""
    assert "stray secrets" not in screen_of(report_of(*GOOD, finished=False, failure="unreadable", status=1))
    assert "stray secrets" in screen_of(report_of(*GOOD, strays=()))


def test_times_come_from_the_stages() -> None:
    """Restore and first answer are timed from the restore's start, on this side's clock."""
    stages = {
        "restored": Stage(name="restored", at=11.0),
        "resumed": Stage(name="resumed", at=11.5, fields={"took_s": 0.4, "healed": False, "reason": ""}),
        "answered": Stage(name="answered", at=12.0, fields={"took_s": 0.2, "text": "[bold]hi\x1b]0;owned\x07\ud83d"}),
    }
    report = RehearsalReport(request=REQUEST, cold_s=5.8, restore_began=10.0)
    report.restored(stages)
    assert (report.restore_s, report.resume_s, report.answer_s, report.first_answer_s) == (1.0, 0.4, 0.2, 2.0)
    assert report.answer == "[bold]hi?"
    assert report.speed_up == 3.0
    assert "[bold]hi" in screen_of(report)
    assert "3.0 x" in screen_of(report)


def test_what_the_contract_warns_of_is_shown() -> None:
    """Notes of the log become rows of the table."""
    report = report_of("contract: warning, remounted: pid 7 maps /llama-build/b1/libggml.so")
    assert "pid 7 maps /llama-build/b1/libggml.so" in screen_of(report)


def test_sleep_and_wake_are_timed_where_there_were_any() -> None:
    """Their Steps are rows with seconds, of the server that was sealed; an engine that does not sleep has none."""
    starting, sealed = logged(events.Starting(**TIMES, attempt=1), events.ChildSealed(**TIMES, took_s=1.0))
    before = [starting, passed("sleep", "check", 7.0)]
    moved = events.GpuMemoryOffloaded(
        **TIMES, pids=(7,), bytes=17_200_000_000, stored_bytes=15_900_000_000, took_s=0.2, gb_per_s=80.0
    )
    asleep = [passed("sleep", "check", 0.5), *logged(moved), passed("sleep", "offload", 0.25), sealed]
    notice = logged(events.Notice(**TIMES, detail="GPU memory is left to the platform: why"))
    report = report_of(
        *before, starting, *asleep, passed("wake", "reload"), starting, passed("wake", "reload", 9.0), *notice
    )
    told = json.loads(report.to_json())
    assert (told["sleep_s"], told["wake_s"]) == (0.75, 0.1)
    assert re.search(r"sleep .* 0\.75 s .* check, offload, 15\.90 of 17\.20 GB", screen_of(report, 200))
    assert re.search(r"wake .* 0\.10 s .* reload", screen_of(report))
    assert "GPU memory is left to the platform: why" in screen_of(report)
    awake = report_of(*GOOD)
    assert json.loads(awake.to_json())["sleep_s"] is None
    assert "wake " not in screen_of(awake)


@pytest.mark.anyio
async def test_what_was_made_for_a_child_outside_of_the_sandbox_goes() -> None:
    """`before_start` runs outside too, for what belongs on the disk; observers hear that no child follows."""
    seen: list[str] = []

    async def make(child: Child) -> None:
        child.tell(events.Notice(detail="made"))

    profile = Profile(name="x", command=("true", "{port}"))
    hooks = Hooks(before_start=(step("make", make),), observers=(lambda event: seen.append(event.name),))
    subject = of_profile(profile, hooks, REQUEST, argv=("true",))
    assert subject.before is not None
    await subject.before()
    assert seen == ["child.starting", "supervision.notice", "step.passed", "supervision.stopped"]
