"""The options that `run`, `exec` and `argv` share, and what they change in a profile."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from hooks import auth
from hooks.warmup import liveness_after
from hooks.warmup import steps as warmup
from supervisor.cli.gpu_memory import offloading
from supervisor.errors import ProfileError
from supervisor.loading import variables
from supervisor.profile import Profile, Stop
from supervisor.redact import Secret
from supervisor.steps import Hooks

if TYPE_CHECKING:
    from hooks.golden import Golden
    from supervisor import events

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS: Final = (
    click.option("--name", help="A name for logs, messages, `supervise sleep` and `wake`."),
    click.option("--host", help="Where the server listens; stands for {host}.  [127.0.0.1]"),
    click.option("--port", type=int, help="Where the server listens; stands for {port}. 0: a free one.  [0]"),
    click.option("--health", metavar="PATH", help="Answers 200 to 299 once the server can serve.  [/health]"),
    click.option(
        "--allow-foreign-listener",
        is_flag=True,
        default=None,
        help="Another process may listen for the server, as docker-proxy does.",
    ),
    click.option("--model-id", help="The model that /v1/models must list before READY."),
    click.option("--ready-pattern", metavar="REGEX", help="A log line after which health is asked at once."),
    click.option(
        "--warmup",
        "warmups",
        multiple=True,
        metavar="text|thinking|image|tools|draw|FILE",
        help="A request whose answer must be good before READY, after the profile's own. Repeatable; FILE holds JSON.",
    ),
    click.option("--auth-check", is_flag=True, help="Not READY unless the server refuses requests without the key."),
    click.option("--open", "open_access", is_flag=True, help="The server is meant to answer without a key."),
    click.option("--api-key-env", metavar="NAME", help="The variable that holds the server's key."),
    click.option("--start-timeout-s", type=float, help="From the start until health answers, at most.  [600]"),
    click.option("--stall-s", type=float, help="Give up when nothing is read, computed or logged for so long.  [120]"),
    click.option("--step-timeout-s", type=float, help="For one warmup or check, at most.  [120]"),
    click.option("--grace-s", type=float, help="From TERM to KILL, when stopping.  [the engine's; plain: 10]"),
    click.option("--drain-s", type=float, help="For the last of the log, after the end.  [2]"),
    click.option(
        "--restart", type=click.Choice(["never", "on-failure", "on-resume"]), help="Whether to start it again.  [never]"
    ),
    click.option("--max-restarts", type=int, help="How often, with --restart on-failure.  [5]"),
    click.option("--liveness-s", type=float, help="Between two checks that it still answers; 0: none.  [10]"),
    click.option(
        "--weights",
        type=Path,
        multiple=True,
        metavar="FILE",
        help="A file that the load reads, for progress. Repeatable.",
    ),
    click.option(
        "--vital",
        multiple=True,
        metavar="REGEX",
        help="A process of the server, by command line or name, whose end is the server's. Repeatable.",
    ),
    click.option("--cwd", type=Path, help="The server's working directory."),
    click.option("--env", "env", multiple=True, metavar="KEY=VALUE", help="A variable for the server. Repeatable."),
    click.option(
        "--log-format",
        type=click.Choice(["console", "json"]),
        default="console",
        show_default=True,
        help="How the log on stderr is written.",
    ),
)


def shared_options(command: F) -> F:
    """Decorates a command with every shared option."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


_SEAL_OPTIONS: Final = (
    click.option(
        "--golden",
        "goldens",
        multiple=True,
        metavar="text|image|FILE",
        help="Record an answer before a seal, and demand the same after the resume. Repeatable; FILE holds a question.",
    ),
    click.option("--contract", is_flag=True, help="Refuse a seal while the processes hold what no snapshot carries."),
    click.option(
        "--gpu-memory",
        type=click.Choice(["offload", "driver"]),
        help="Put GPU memory aside while it sleeps, or leave it where it is.  [driver]",
    ),
)


def seal_options(command: F) -> F:
    """Decorates a command whose server may be sealed."""
    for option in reversed(_SEAL_OPTIONS):
        command = option(command)
    return command


def sealing(hooks: Hooks, given: dict[str, Any]) -> Hooks:
    """The hooks with golden answers and the snapshot contract, where they were asked for and are not there."""
    if not (given["goldens"] or given["contract"]):
        return hooks
    from hooks.contract import SnapshotContract  # most starts do without it

    pairs = [_golden(word) for word in dict.fromkeys(given["goldens"])]
    before = (*hooks.before_seal, *(golden.record for golden in pairs))
    if given["contract"] and not any(isinstance(step, SnapshotContract) for step in before):
        before = (*before, SnapshotContract())
    after = (*hooks.after_resume, *(golden.replay for golden in pairs))
    return replace(hooks, before_seal=before, after_resume=after)


def sealed_way(
    profile: Profile, hooks: Hooks, given: dict[str, Any]
) -> tuple[Profile, Hooks, tuple[events.Notice, ...]]:
    """The profile and hooks with all that the options of a seal ask for, and what to tell the user first.

    Raises:
        ProfileError: a word is unknown, a file is missing, or GPU memory cannot be put aside as the server is set up.
    """
    with_checks = sealing(hooks, given)
    proof = with_checks.after_resume[len(hooks.after_resume) :]
    return offloading(profile, with_checks, given["gpu_memory"], proof=proof)


def _golden(word: str) -> Golden:
    from hooks.golden import Golden

    if word in ("text", "image"):
        return Golden() if word == "text" else Golden.image()
    path = Path(word)
    allowed = "text, image, or the path of a file that holds a question as text"
    try:
        question = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise ProfileError(field="--golden", value=word, allowed=allowed) from error
    if not question:
        raise ProfileError(field="--golden", value=word, allowed=allowed)
    return Golden(prompt=question, name=f"golden {path.name}")


def override(profile: Profile, hooks: Hooks, given: dict[str, Any]) -> tuple[Profile, Hooks]:
    """The profile and hooks with the options that were given on the command line.

    Raises:
        ProfileError: a value is out of range, a file or variable is missing, an `--env` has no `=`.
    """

    def part(old: Any, **names: str) -> Any:
        return replace(old, **{field: given[name] for field, name in names.items() if given[name] is not None})

    key = _key(given["api_key_env"])
    off = given["liveness_s"] == 0
    liveness = replace(profile.liveness, armed="never") if off else part(profile.liveness, period_s="liveness_s")
    profile = replace(
        part(profile, name="name", host="host", port="port", cwd="cwd"),
        env={**profile.env, **variables(given["env"])},
        api_key=key or profile.api_key,
        api_key_env=profile.api_key_env or given["api_key_env"],
        open_access=given["open_access"] or (profile.open_access and key is None),
        weights=given["weights"] or profile.weights,
        vital=given["vital"] or profile.vital,
        health=part(
            profile.health,
            path="health",
            model_id="model_id",
            ready_pattern="ready_pattern",
            allow_foreign_listener="allow_foreign_listener",
        ),
        timeouts=part(profile.timeouts, start_s="start_timeout_s", stall_s="stall_s", step_s="step_timeout_s"),
        stop=stop_as_given(profile.stop, given),
        restart=part(profile.restart, policy="restart", max_restarts="max_restarts"),
        liveness=liveness,
    )
    if given["warmups"]:
        steps = tuple(map(warmup.parse, given["warmups"]))
        # In addition to the profile's, among which are those that close an engine's open routes.
        added = tuple(step for step in steps if step not in hooks.warmup)
        # Whoever asks for a warmup serves a model: then a tiny inference can show a hang that /health hides.
        hooks = replace(hooks, warmup=(*hooks.warmup, *added), liveness=hooks.liveness or liveness_after(steps))
    if given["auth_check"] and not any(isinstance(step, auth.AuthCheck) for step in hooks.warmup):
        hooks = replace(hooks, warmup=(*hooks.warmup, auth.AuthCheck(words=auth.COMMAND_LINE)))
    return profile, hooks


def stop_as_given(stop: Stop, given: dict[str, Any]) -> Stop:
    """Return the way to stop with the limits that were given on the command line."""
    limits = {name: given[name] for name in ("grace_s", "drain_s") if given[name] is not None}
    return replace(stop, **limits)


def _key(variable: str | None) -> Secret | None:
    if variable is None:
        return None
    if not os.environ.get(variable, "").strip():
        raise ProfileError(
            field="--api-key-env", value=variable, allowed="the name of a variable that is set, not blank"
        )
    return Secret(os.environ[variable], name=variable)
