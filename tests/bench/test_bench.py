"""The benchmarks: their arithmetic, each of them once at its smallest size, and the numbers of docs/numbers.md."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench import __main__ as program
from bench import cold_start, crash, log_pump, page, peers, readiness_lag, resume, scale, stop
from bench.rows import Bar, Outcome, Peer, Row, median, percentile
from bench.setting import Setting, machine
from bench.table import number, table_of

REPORT = {
    "failure": "",
    "healed": "",
    "resume_s": 0.5,
    "cold_s": 3.0,
    "first_answer_s": 1.0,
    "events": [
        {"name": "step.passed", "fields": {"point": "before_seal", "took_s": "9"}},
        {"name": "step.passed", "fields": {"point": "after_resume", "took_s": "0.46"}},
    ],
}


@pytest.mark.parametrize(
    ("samples", "percent", "expected"),
    [
        ([3, 1, 2], 50, 2),
        ([1, 2, 3, 4], 50, 2),
        (range(1, 101), 99, 99),
        ([7], 99, 7),
        ([1, 2], 100, 2),
        ([5, 6], 0, 5),
    ],
)
def test_a_percentile_was_measured(samples: list[float], percent: float, expected: float) -> None:
    """Nearest rank: one of the samples, in whatever order they came."""
    assert percentile(samples, percent) == expected


def test_no_samples_have_no_percentile() -> None:
    """Nothing measured is an error, not a zero."""
    with pytest.raises(ValueError, match="no samples"):
        median([])


def test_a_ratio_above_one_means_that_ours_is_better() -> None:
    """Less is better for times, more for throughput; a missing or zero value has no ratio."""
    peer, nothing = Peer(name="peer", value=50.0), Peer(name="gone", value=None)
    times = Row(benchmark="b", what="w", unit="ms", ours=5.0)
    throughput = Row(benchmark="b", what="w", unit="MB/s", ours=5.0, more_is_better=True)
    assert (times.ratio(peer), throughput.ratio(peer), times.ratio(nothing)) == (10.0, 0.1, None)
    assert Row(benchmark="b", what="w", unit="ms", ours=0.0).ratio(peer) is None


@pytest.mark.parametrize(
    ("ours", "bar", "verdict"),
    [
        (5.0, Bar(limit=5), "met"),
        (5.1, Bar(limit=5), "MISSED"),
        (0.8, Bar(limit=0.8, at_least=True), "met"),
        (0.7, Bar(limit=0.8, at_least=True), "MISSED"),
        (1.0, None, "no bar"),
        (None, Bar(limit=5), "not measured"),
    ],
)
def test_verdicts(ours: float | None, bar: Bar | None, verdict: str) -> None:
    """A bar is met at its limit; what was not measured is not met."""
    assert Row(benchmark="b", what="w", unit="", ours=ours, bar=bar).verdict == verdict


@pytest.mark.parametrize("loop", peers.LOOPS, ids=lambda loop: str(loop.name))
@pytest.mark.parametrize("ready_s", [0.0, 0.1, 0.25, 0.26, 3.0, 17.3])
def test_a_replay_is_the_loop(loop: peers.Loop, ready_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replayed, a loop notices when it would have noticed for real."""
    clock, probe_s = [0.0], 0.01
    monkeypatch.setattr("bench.peers.time.sleep", lambda pause_s: clock.append(clock[-1] + pause_s))

    def healthy() -> bool:
        began = clock[-1]
        clock.append(began + probe_s)
        return began >= ready_s

    loop.wait(healthy)
    assert loop.replay(ready_s, probe_s=probe_s) == pytest.approx(clock[-1])


def test_the_backoff_has_its_constants() -> None:
    """Half a second, half as long again each time, never over five."""
    assert list(itertools.islice(peers.LOOPS[0].pauses(), 8))[:3] == [0.5, 0.75, 1.125]
    assert max(itertools.islice(peers.LOOPS[0].pauses(), 20)) == 5.0


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (1234.5, "1,234 ms"), (0.01234, "0.0123 ms"), (99.96, "100 ms")]
)
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    """What is shown is no more precise than it is."""
    assert number(value, "ms" if value is not None else "") == text


def rehearsing(folder: Path, report: dict[str, Any] | None) -> tuple[str, ...]:
    """A command that rehearses nothing and says what it is told."""
    script = folder / "rehearse.py"
    write = "" if report is None else f"pathlib.Path(sys.argv[-1]).write_text({json.dumps(report)!r})"
    script.write_text(f"import pathlib, sys\n{write}\nsys.stderr.write('no sandbox here')\n")
    return (sys.executable, str(script), "--json")


def tiny(folder: Path, report: dict[str, Any] | None = None) -> Setting:
    return Setting(size="tiny", scratch=folder, rehearse=rehearsing(folder, report or REPORT))


@pytest.mark.slow
@pytest.mark.parametrize(
    "run",
    [
        readiness_lag.run,
        log_pump.run,
        crash.run,
        resume.run,
        scale.run,
        pytest.param(cold_start.run, marks=pytest.mark.engine),
        pytest.param(stop.run, marks=pytest.mark.engine),
    ],
    ids=lambda run: str(run.__module__),
)
def test_a_benchmark_runs(run: Callable[[Setting], Outcome], tmp_path: Path) -> None:
    """Every row has a value of ours; every missed bar has a reason; the peers that are not installed say so."""
    rows = run(tiny(tmp_path)).rows
    assert rows
    for row in rows:
        assert row.ours is not None
        assert row.reason or row.verdict != "MISSED"
        assert all(peer.note for peer in row.peers if peer.value is None)


def test_what_a_resume_adds(tmp_path: Path) -> None:
    """The golden answer after the resume is the engine's own time; other Steps are not counted."""
    first, speed_up = resume.run(tiny(tmp_path)).rows
    assert first.ours == pytest.approx(40.0)
    assert (first.verdict, speed_up.ours) == ("met", 3.0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"failure": "it broke"}, "it broke"),
        ({"healed": "golden"}, "golden"),
        ({"resume_s": None}, "no resume"),
        ({"events": []}, "no Step"),
    ],
)
def test_a_failed_rehearsal_is_no_number(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    """The row says that nothing was measured, and why."""
    (row,) = resume.run(tiny(tmp_path, REPORT | change)).rows
    assert row.verdict == "not measured"
    assert reason in row.reason


def test_a_rehearsal_that_writes_nothing_is_no_number(tmp_path: Path) -> None:
    """The last line on stderr is the reason."""
    setting = Setting(size="tiny", scratch=tmp_path, rehearse=rehearsing(tmp_path, None))
    (row,) = resume.run(setting).rows
    assert row.ours is None
    assert "no sandbox here" in row.reason


def test_a_report_is_shown(tmp_path: Path) -> None:
    """The report survives JSON, and the table on screen and the page's name the machine, every row and every peer."""
    report = json.loads(json.dumps(program.measure(tiny(tmp_path), ["resume"], lambda _: None)))
    missed = Row(benchmark="b", what="slow | thing", unit="ms", ours=9.0, bar=Bar(limit=5), reason="a cause",
                 peers=(Peer(name="rival", value=18.0, simulated=True),))  # fmt: skip
    report["rows"].append(missed.to_dict())
    console = Console(width=200, record=True, file=(tmp_path / "screen").open("w"))
    console.print(table_of(report))
    console.file.close()
    for text in (console.export_text(), page.rendered(report)):
        for part in ("resume()", "missed", "a cause", "rival: 18 ms (2 x)"):
            assert part in text.replace("MISSED", "missed")
        assert machine()["cpu"] in text
    assert "slow \\| thing" in page.rendered(report)


def test_the_page_and_the_results_agree() -> None:
    """The numbers of docs/numbers.md are those of the committed run: `make bench-page` brings them in line."""
    assert page.main(["--check"]) == 0


def test_a_difference_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A number changed by hand fails the check, and the script repairs it."""
    copy = tmp_path / "numbers.md"
    copy.write_text("head\n<!-- bench:begin -->\n42 ms\n<!-- bench:end -->\ntail\n", encoding="utf-8")
    monkeypatch.setattr(page, "PAGE", copy)
    assert page.main(["--check"]) == 1
    assert page.main([]) == 0
    assert page.main(["--check"]) == 0
    assert copy.read_text(encoding="utf-8").startswith("head\n")
    with pytest.raises(ValueError, match="the page has no"):
        page.with_numbers("no markers", None)


def test_the_programs_of_the_peers_are_there() -> None:
    """What is run in the peers' environment, which the suite does not have, is found."""
    for name in ("mirakuru_start.py", "circus_stop.py"):
        assert Path(readiness_lag.setting_program(name)).is_file()
