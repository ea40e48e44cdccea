"""What an engine is, what is known of its servers, and the engine of which nothing is known but the command."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from supervisor.dialect import Dialect
from supervisor.profile import Profile
from supervisor.steps import Hooks

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from supervisor.redact import Secret

__all__ = ["Engine", "EngineKind", "PlainServer"]


class Engine(Protocol):
    """Settings of one server, from which a profile is made. Frozen; making one asks nothing of the machine."""

    @property
    def dialect(self) -> Dialect:
        """How the server speaks; the profile carries the same."""

    def profile(self) -> Profile:
        """Build the profile. May run the engine's `--help`, so call it where the engine is.

        Raises:
            SupervisorError: the engine is missing or lacks what a setting needs.
        """

    def hooks(self) -> Hooks:
        """Return the Steps without which the engine does not work, such as one that writes its model."""


def _as_it_is(profile: Profile) -> Profile:
    return profile


def _no_hooks(_: Profile) -> Hooks:
    return Hooks()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKind:
    """What is known of every server of an engine, whoever wrote its command; for `supervise exec` and `smoke`.

    A package of `supervisor/engines` offers one as `KIND` in its module `kind`; `catalogue` finds it there.

    Attributes:
        dialect: how such a server speaks. Its `engine` is the name that `--engine` takes.
        runs: argv -> whether this command starts such a server.
        adopt: the profile of a plain command -> the same with what the engine needs: how health is judged, how log
            lines are read, the grace period, counters, the dialect. Keeps what differs from a profile's defaults.
        hooks: the adopted profile -> Steps without which such a server should not run.
    """

    dialect: Dialect
    runs: Callable[[Sequence[str]], bool]
    adopt: Callable[[Profile], Profile] = _as_it_is
    hooks: Callable[[Profile], Hooks] = _no_hooks

    @property
    def name(self) -> str:
        """The engine's name."""
        return self.dialect.engine


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainServer:
    """Any HTTP server, by its command. Implements `Engine`; its dialect is that of any OpenAI-compatible server.

    Attributes:
        command: argv; `{host}` and `{port}` are substituted.
        env: more variables of the child; `{host}` and `{port}` are substituted here too.
        port: where it listens; 0 chooses a free one, and then `{port}` must stand in the command or `env`.
        name: for people and logs; default: the program's name.
    """

    command: tuple[str, ...]
    env: Mapping[str, str | Secret] = field(default_factory=dict)
    port: int = 0
    name: str | None = None

    @property
    def dialect(self) -> Dialect:
        """What can be expected of any server."""
        return Dialect()

    def profile(self) -> Profile:
        """Build the profile; raises ProfileError when a part of it is wrong."""
        program = self.command[0] if self.command else ""
        return Profile(
            name=self.name or Path(program).name or program,
            command=self.command,
            env=self.env,
            port=self.port,
            dialect=self.dialect,
        )

    def hooks(self) -> Hooks:
        """Return no Steps: a plain server needs none."""
        return Hooks()
