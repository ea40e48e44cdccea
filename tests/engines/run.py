"""Runs the checks of recipes, and collects their results."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import anyio

from engines.environment import BUILD, Environment, InstallFailed, build
from engines.lifecycle import Check, plan
from engines.recipe import Lacking, Recipe
from engines.session import Ended, Session, start
from supervisor import Secret

__all__ = ["Report", "Result", "check_engine"]

Verdict = Literal["passed", "failed", "lacking", "none", "not run"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One check of one engine.

    Attributes:
        check: its title: `crash: Worker`.
        verdict: `lacking`: the platform lacks something; `none`: the engine has no such thing; `not run`: what came
            before it failed.
        declared: a lack that the recipe itself declares.
        seconds: what the check measures; None: it did not pass.
        detail: what was seen, or what is wrong.
    """

    check: str
    verdict: Verdict
    declared: bool = False
    seconds: float | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All checks of one engine.

    Attributes:
        engine, version: what ran.
        install_s, checks_s: how long that took.
        results: in the order of the checks.
    """

    engine: str
    version: str
    install_s: float
    checks_s: float
    results: tuple[Result, ...]

    def failed(self, *, strict: bool) -> bool:
        """Whether anything failed, or (strict) is lacking though the recipe does not say so."""
        return any(
            result.verdict in ("failed", "not run") or (strict and result.verdict == "lacking" and not result.declared)
            for result in self.results
        )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Report:
        """The report that `to_json` wrote; other keys are left aside."""
        own = {field.name: values[field.name] for field in fields(cls)}
        return cls(**(own | {"results": tuple(Result(**row) for row in own["results"])}))

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values, with times rounded to what is worth comparing."""
        values = asdict(self)
        for row in (values, *values["results"]):
            row |= {name: round(value, 2) for name, value in row.items() if isinstance(value, float)}
        return values


def check_engine(
    recipe: Recipe, say: Callable[[str], None], *, only: Collection[str] = (), folder: Path = BUILD
) -> Report:
    """Install the engine, start it, and run its checks one after the other.

    Args:
        recipe: of the engine.
        say: shows a line of progress.
        only: names of checks; the server is started all the same. Empty: all.
        folder: of the environments.
    """
    began = time.monotonic()
    try:
        env = build(recipe, say, folder)
        version = recipe.version(env) if recipe.version else f"{recipe.package} {env.version_of(recipe.package or '')}"
    except (InstallFailed, Lacking) as error:
        verdict: Verdict = "lacking" if isinstance(error, Lacking) else "failed"
        result = Result(check="install", verdict=verdict, detail=str(error))
        took_s = time.monotonic() - began
        return Report(engine=recipe.name, version="?", install_s=took_s, checks_s=0.0, results=(result,))
    installed = time.monotonic()
    results = anyio.run(_checks, recipe, env, say, only)
    return Report(
        engine=recipe.name,
        version=version,
        install_s=installed - began,
        checks_s=time.monotonic() - installed,
        results=tuple(results),
    )


async def _checks(recipe: Recipe, env: Environment, say: Callable[[str], None], only: Collection[str]) -> list[Result]:
    checks = [check for check in plan(recipe) if not only or {check.name, check.title} & set(only)]
    results: list[Result] = []
    log = env.folder / "server.log"
    say(f"starting (log: {log})")
    with log.open("w", encoding="utf-8") as file:
        try:
            engine = recipe.engine(env, env.model, Secret(secrets.token_urlsafe(24)))
            async with start(recipe, engine, file) as session:
                for check in checks:
                    result = await _result(recipe, check, session)
                    results.append(result)
                    say(_line(result))
        except Exception as error:  # noqa: BLE001  shown as what it is: the engine did not start
            results.append(Result(check="start", verdict="failed", detail=f"{type(error).__name__}: {error}"))
            say(_line(results[-1]))
    done = {result.check for result in results}
    return results + [Result(check=check.title, verdict="not run") for check in checks if check.title not in done]


async def _result(recipe: Recipe, check: Check, session: Session) -> Result:
    if lack := recipe.lack(check.name, check.variant):
        return Result(check=check.title, verdict="lacking", declared=True, detail=lack)
    if check.run is None:
        return Result(check=check.title, verdict="none", detail=check.none)
    try:
        session.server  # noqa: B018  raises when the supervision has ended
        seen = await check.run(session)
    except Ended as error:
        return Result(check=check.title, verdict="failed", detail=str(error))
    except Exception as error:  # noqa: BLE001  every failure is a result, and the next check is tried
        return Result(check=check.title, verdict="failed", detail=f"{type(error).__name__}: {error}")
    return Result(check=check.title, verdict="passed", seconds=seen.seconds, detail=seen.detail)


def _line(result: Result) -> str:
    seconds = "" if result.seconds is None else f" {result.seconds:.2f} s"
    return f"{result.check}: {result.verdict}{seconds}{f' - {result.detail}' if result.detail else ''}"
