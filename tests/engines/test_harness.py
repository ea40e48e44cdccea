"""The harness of the real engines, on the fake server: what passes, what fails, and what a platform lacks."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from engines import __main__ as program
from engines import page
from engines.environment import Environment, InstallFailed, build
from engines.lanes import run_lanes
from engines.lifecycle import plan
from engines.recipe import CHECKS, LEADER, Lacking, Recipe, Sleep, named, recipes
from engines.run import Report, Result, check_engine
from supervisor import Health, Hooks, Profile, Secret, Stop, step
from supervisor.dialect import Dialect
from supervisor.engines.llama_cpp import LLAMA_CPP
from supervisor.errors import ProfileError
from support import FAKE, READY_LINE


@dataclass(frozen=True, slots=True, kw_only=True)
class FakeEngine:
    """The fake server with fault flags. Implements `Engine`."""

    key: Secret
    flags: tuple[str, ...] = ()
    grace_s: float = 5.0

    @property
    def dialect(self) -> Dialect:
        return replace(LLAMA_CPP, asleep=None)  # the fake has no such field

    def profile(self) -> Profile:
        return Profile(
            name="fake",
            command=(sys.executable, "-I", "-S", str(FAKE), "--port", "{port}", *self.flags),
            api_key=self.key,
            api_key_env="LLAMA_API_KEY",
            health=Health(ready_pattern=READY_LINE),
            stop=Stop(grace_s=self.grace_s),
            dialect=self.dialect,
        )

    def hooks(self) -> Hooks:
        return Hooks()


def recipe(*flags: str, grace_s: float = 5.0, **fields: Any) -> Recipe:
    """A recipe of the fake server."""
    defaults: dict[str, Any] = {
        "name": "fake",
        "version": lambda _: "fake 1",
        "engine": lambda _, __, key: FakeEngine(key=key, flags=flags, grace_s=grace_s),
    }
    return Recipe(**(defaults | fields))


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs checks of a recipe; returns the results by check."""

    def run(tried: Recipe, *only: str) -> dict[str, Any]:
        report = check_engine(tried, lambda _: None, only=only, folder=tmp_path)
        return {result.check: result for result in report.results}

    return run


def test_a_good_engine_passes_every_check(tmp_path: Path) -> None:
    """Everything but the hang, which needs the watchdog's patience, on one server with one restart."""
    asleep: list[str] = []

    async def fall_asleep(_: object) -> None:
        asleep.append("sleep")

    async def wake(_: object) -> None:
        asleep.append("wake")

    hooks = Hooks(sleep=(step("sleep", fall_asleep),), wake=(step("wake", wake),))
    tried = recipe(sleeps=(Sleep(name="nap", hooks=lambda _: hooks, healthy=200),), lacks={"hang": "time"})
    report = check_engine(tried, lambda _: None, folder=tmp_path)
    verdicts = {result.check: (result.verdict, result.detail) for result in report.results}
    assert [name.partition(":")[0] for name in verdicts] == list(CHECKS)
    assert {name for name, (verdict, _) in verdicts.items() if verdict != "passed"} == {"hang"}, verdicts
    assert verdicts["hang"] == ("lacking", "time")
    assert asleep == ["sleep", "wake"]
    assert not report.failed(strict=True)


@pytest.mark.parametrize(
    ("flags", "name", "said"),
    [
        ("--open", "auth", "open to everybody"),
        ("--random-answers", "answers", "does not answer the same twice"),
        ("--io-uring", "seal", "io_uring"),
        ("--ignore-sigterm", "stop", "KILL was needed"),
    ],
)
def test_a_fault_fails_its_check(check: Callable[..., dict[str, Any]], flags: str, name: str, said: str) -> None:
    """Each check sees the fault that it is there for, and says it."""
    result = check(recipe(*flags.split(), grace_s=0.2, golden=tuple), name)[name]
    assert (result.verdict, result.seconds) == ("failed", None)
    assert said in result.detail


def test_a_process_that_is_not_there_is_no_proof(check: Callable[..., dict[str, Any]]) -> None:
    """A crash of a process that nobody found is a failure."""
    results = check(recipe(processes={"worker": "no such process"}), "crash")
    assert results["crash: worker"].verdict == "failed"
    assert "no such process" in results["crash: worker"].detail


def test_a_server_that_does_not_start_fails(check: Callable[..., dict[str, Any]]) -> None:
    """The error is shown, and every check counts as not run, which is a failure."""
    results = check(recipe("--die-while-loading", start_s=20))
    assert results["start"].verdict == "failed"
    assert "DiedBeforeReady" in results["start"].detail or "crash loop" in results["start"].detail
    assert {result.verdict for name, result in results.items() if name != "start"} <= {"not run", "none"}


def test_the_crash_of_the_leader_ends_one_life(check: Callable[..., dict[str, Any]]) -> None:
    """The notice is timed, the healed server answers as before."""
    seen = check(recipe(), "answers", f"crash: {LEADER}")[f"crash: {LEADER}"]
    assert seen.verdict == "passed"
    assert "ChildCrashed" in seen.detail
    assert "answers as before" in seen.detail


def test_lacks(tmp_path: Path) -> None:
    """A lack that the recipe declares is accepted; one that shows at the install is only without --strict."""

    def prepare(_: Environment) -> None:
        raise Lacking("AVX-512, which the wheel is compiled for")

    declared = check_engine(recipe(lacks={"load": "a GPU"}), lambda _: None, only=["load"], folder=tmp_path)
    found = check_engine(recipe(name="other", prepare=prepare), lambda _: None, folder=tmp_path)
    assert [report.failed(strict=True) for report in (declared, found)] == [False, True]
    assert not found.failed(strict=False)
    assert "AVX-512" in found.results[0].detail


def test_an_environment_is_made_once(tmp_path: Path) -> None:
    """A second build finds the stamp; a failed one leaves none, and shows the end of its log."""
    made: list[str] = []

    def make(env: Environment, folder: Path) -> None:
        made.append(folder.name)
        env.run(env.python, "-c", "print('the last line'); raise SystemExit(int(bool(0)))")

    def fail(env: Environment, _: Path) -> None:
        env.run(env.python, "-c", "print('the last line'); raise SystemExit(3)")

    for _ in range(2):
        build(recipe(make_model=make), lambda _: None, tmp_path)
    assert made == ["model"]
    for _ in range(2):
        with pytest.raises(InstallFailed, match=r"exit code 3(.|\n)*the last line"):
            build(recipe(name="broken", make_model=fail), lambda _: None, tmp_path)


def test_the_command_fails_with_a_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1 and the table for a failure, 0 without; the results of other engines stay in the file."""

    def here(tried: Recipe, say: Callable[[str], None], only: list[str]) -> Report:
        return check_engine(tried, say, only=only, folder=tmp_path)

    monkeypatch.setattr(program, "check_engine", here)
    file = tmp_path / "results.json"
    for name, flags, code in (("good", "", 0), ("bad", "--open", 1)):
        monkeypatch.setattr(program, "named", lambda _, name=name, flags=flags: (recipe(*flags.split(), name=name),))
        assert program.main(["--only", "auth", "--json", str(file)]) == code
    assert [entry["engine"] for entry in json.loads(file.read_text())["engines"]] == ["bad", "good"]
    assert "open to everybody" in " ".join(capsys.readouterr().out.split())


def test_unknown_names_are_refused() -> None:
    """The message lists the engines that there are."""
    with pytest.raises(ProfileError, match="embedded"):
        named(["nobody"])


@pytest.mark.parametrize("real", recipes(), ids=lambda real: str(real.name))
def test_every_recipe_has_a_plan(real: Recipe) -> None:
    """Each recipe loads without its engine, names every check, and an install that can be hashed."""
    assert {check.name for check in plan(real)} == set(CHECKS)
    assert real.requirements is None or real.requirements.is_file()


def test_the_page_shows_the_results() -> None:
    """docs/engines.md holds what results.json says, for engines that have a recipe."""
    assert page.main(["--check"]) == 0
    entries = json.loads(page.RESULTS.read_text(encoding="utf-8"))["engines"]
    assert {entry["engine"] for entry in entries} <= {real.name for real in recipes()}


def test_a_row_of_the_page() -> None:
    """Cold start, variants and what an engine does not have, in one row."""
    rows = [("load", "passed", 2.0), ("warm", "passed", 0.5), ("sleep", "none", None), ("crash: a", "passed", 0.1)]
    results = [{"check": c, "verdict": v, "seconds": s, "detail": "a | b"} for c, v, s in rows]
    where = {"date": "2026-01-01", "machine": "m", "python": "3", "install_s": 1.0, "checks_s": 1.0}
    text = page.rendered({"engines": [{"engine": "e", "version": "1", "results": results, **where}]})
    assert "| e | 1 | 2.5 |  | none |  | 0.10 (a) |  |" in text
    assert "a \\| b" in text


def test_reports_are_json() -> None:
    """Times are rounded to what is worth comparing, and a report can be read back."""
    result = Result(check="load", verdict="passed", seconds=1.5)
    report = Report(engine="e", version="1", install_s=1.23456, checks_s=2.0, results=(result,))
    assert report.to_json()["install_s"] == 1.23
    assert Report.from_json({"date": "today", **report.to_json()}).results == (result,)


def test_lanes_show_what_did_not_run() -> None:
    """An engine whose process wrote no results is a failure, with the last thing that it said."""
    said: list[str] = []
    (report,) = run_lanes([recipe(name="nobody")], 2, [], said.append)
    assert report.failed(strict=False)
    assert "nobody" in report.results[0].detail
    assert said
