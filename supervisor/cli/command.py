"""The profile of a bare command, for `exec` and `rehearse`: whose server it is, and what its engine needs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from supervisor import events
from supervisor.cli.options import override, stop_as_given
from supervisor.engines import PlainServer
from supervisor.loading import variables

if TYPE_CHECKING:
    from supervisor.engines.base import EngineKind
    from supervisor.profile import Profile
    from supervisor.steps import Hooks

__all__ = ["of_command"]


def of_command(command: tuple[str, ...], given: dict[str, Any]) -> tuple[Profile, Hooks, events.EngineChosen]:
    """The profile and hooks of a command with the options that were given, and the event that says whose server it is.

    Raises:
        ProfileError: as `override`, and for an engine that there is not.
    """
    from supervisor.engines import catalogue  # the other commands start without every engine's imports

    kind = catalogue.named(given["engine"]) if given["engine"] is not None else catalogue.guess(command)
    server = PlainServer(command=command, env=variables(given["env"]), port=given["port"] or 0)
    # The limits of the stop come last: an engine knows whom to signal, and the user for how long to wait.
    profile, hooks = override(server.profile(), server.hooks(), given | {"grace_s": None, "drain_s": None})
    profile = kind.adopt(profile)
    profile = replace(profile, stop=stop_as_given(profile.stop, given))
    return profile, kind.hooks(profile) + hooks, events.EngineChosen(engine=kind.name, why=_why(kind, given["engine"]))


def _why(kind: EngineKind, named: str | None) -> str:
    from supervisor.engines import catalogue

    if named:
        return "as --engine says"
    if kind is not catalogue.PLAIN:
        return "as the command tells; --engine NAME says otherwise, --engine plain takes nothing for granted"
    names = ", ".join(known.name.replace(".", "-") for known in catalogue.kinds() if known is not kind)
    return f"no engine knows the command, so it is any HTTP server; --engine says whose it is: {names}"
