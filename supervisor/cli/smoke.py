"""`supervise smoke URL`: a smoke test of any OpenAI-compatible endpoint."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, TextIO

import click

from supervisor.cli.exits import exits_with_status
from supervisor.cli.reports import json_option, show, write
from supervisor.errors import ProfileError
from supervisor.redact import Secret

if TYPE_CHECKING:
    from hooks.smoke.report import SmokeReport

__all__ = ["smoke"]

# Fields of what the command builds, by the names under which its user knows them, and what else to say of them.
_SPOKEN: Final = {
    "url": ("URL", None),
    "api_key": ("--api-key-env", None),
    "open_access": ("--open", "left out when --api-key-env is given"),
    "health.model_id": ("--model", None),
    "timeouts.step_s": ("--timeout-s", None),
    "deadline_s": ("--deadline-s", None),
    "idle_s": ("--idle-then-wake", None),
    "wake_limit_s": ("--wake-limit-s", None),
    "slots": ("--slots", None),
    "skip": ("--skip", None),
    "only": ("--only", None),
}


@click.command("smoke", short_help="Check any OpenAI-compatible endpoint.")
@click.argument("url")
@click.option("--api-key-env", metavar="NAME", help="The variable that holds the endpoint's key.")
@click.option("--open", "open_access", is_flag=True, help="The endpoint is meant to answer without a key.")
@click.option("--model", metavar="NAME", help="The model to ask for.  [the first that the server lists]")
@click.option("--engine", metavar="NAME", help="Whose dialect it speaks; plain: none's.  [as its models list says]")
@click.option("--slots", type=int, help="Requests that are served at once.  [as the server says]")
@click.option("--skip", multiple=True, metavar="NAME", help="Leave a check out. Repeatable.")
@click.option("--only", multiple=True, metavar="NAME", help="Run this check and no others. Repeatable.")
@click.option("--deadline-s", type=float, default=300.0, show_default=True, help="For the endpoint to come up.")
@click.option("--timeout-s", type=float, default=120.0, show_default=True, help="For one answer.")
@click.option("--idle-then-wake", type=float, metavar="SECONDS", help="Idle so long, then time the wake.")
@click.option("--wake-limit-s", type=float, help="Fail when the wake's first token takes longer.")
@json_option
@exits_with_status
def smoke(out: TextIO | None, **given: Any) -> int:
    """Check that the endpoint at URL is closed to strangers and that every path of it works.

    Checks: auth, model, text, thinking, image, tools, responses, stream, draw, metrics, concurrency, wake. While a
    container comes up, 503s and refused connections are retried until the deadline. The key is sent as
    Authorization: Bearer.

    Exit codes: 0 all good; 2 bad arguments; 3 the endpoint never answered; 4 a check failed.
    """
    try:
        report = _run(given)
    except ProfileError as error:
        field, allowed = _SPOKEN.get(error.field, (error.field, None))
        raise ProfileError(field=field, value=error.value, allowed=allowed or error.allowed) from error
    write(report, out)
    show(report, out)
    return 0 if report.ok else 4 if report.answered else 3


def _run(given: dict[str, Any]) -> SmokeReport:
    # The other commands start without these imports, HTTP client included.
    import anyio
    from rich.console import Console

    from hooks.http.endpoint import Endpoint
    from hooks.smoke.run import Options
    from hooks.smoke.run import smoke as check
    from supervisor.engines import catalogue

    kind = catalogue.named(given["engine"]) if given["engine"] else None
    variable = given["api_key_env"]
    endpoint = Endpoint(
        url=given["url"],
        api_key=Secret(os.environ.get(variable, ""), name=f"--api-key-env {variable}") if variable else None,
        open_access=given["open_access"],
        model=given["model"],
        dialect=kind.dialect if kind else None,
        timeout_s=given["timeout_s"],
    )
    options = Options(
        skip=given["skip"],
        only=given["only"],
        slots=given["slots"],
        deadline_s=given["deadline_s"],
        idle_s=given["idle_then_wake"],
        wake_limit_s=given["wake_limit_s"],
    )
    console = Console(stderr=True)
    with console.status("") as status:

        def show(name: str) -> None:
            if console.is_terminal:
                status.update(f"{name} ...")
            else:
                click.echo(f"supervise smoke: {name} ...", err=True)  # a check may take minutes: a sign of life

        async def run() -> SmokeReport:
            return await check(endpoint, options, dialects=catalogue.dialects(), on_start=show)

        return anyio.run(run)
