"""`Child`: all that a hook may see of the supervised server."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from supervisor.events import Event
from supervisor.profile import Profile
from supervisor.redact import Redactor

if TYPE_CHECKING:
    import httpx


def _to_nobody(_: Event) -> None:
    """For a child outside of a supervision."""


_PLACEHOLDER: Final = re.compile(r"\{\{(?:host|port)\}\}|\{(host|port)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """One run of the supervised server, as hooks see it.

    Attributes:
        profile: what was asked for.
        port: where this run listens (the chosen one when the profile says 0); 0 in `before_start`.
        pid: of the process, which is also its process group and session; None in `before_start`.
        cookie: marks this run's processes among all others, in and out of the session; None in `before_start`.
        redact: masks the profile's secrets; use it on anything of the server's that goes into an error.
    """

    profile: Profile
    port: int
    pid: int | None
    redact: Redactor
    cookie: str | None = None
    tell: Callable[[Event], None] = field(default=_to_nobody, repr=False, compare=False)

    @property
    def host(self) -> str:
        """The address to connect to; a wildcard address is reached over loopback."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.profile.host, self.profile.host)  # noqa: S104

    @property
    def url(self) -> str:
        """The base URL without a trailing slash."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def argv(self) -> tuple[str, ...]:
        """The command of this run, not redacted; `{port}` stands where no port is chosen yet."""
        return tuple(map(self.fill, self.profile.command))

    @property
    def env(self) -> dict[str, str]:
        """What the profile sets in the environment of this run, its key included; not redacted."""
        profile = self.profile
        own = {
            name: self.fill(value) if isinstance(value, str) else value.reveal() for name, value in profile.env.items()
        }
        key = {profile.api_key_env: profile.api_key.reveal()} if profile.api_key and profile.api_key_env else {}
        return own | key

    def fill(self, text: str) -> str:
        """Substitutes `{host}` and `{port}`; `{{host}}` and `{{port}}` stand for these words themselves."""
        values = {"host": self.profile.host, "port": str(self.port) if self.port else "{port}"}
        # Not str.format: arguments hold JSON with braces of its own.
        return _PLACEHOLDER.sub(lambda found: found[0][1:-1] if found[0][1] == "{" else values[found[1]], text)

    def client(self, *, timeout_s: float | None = None, with_key: bool = True) -> httpx.AsyncClient:
        """A fresh client for the server; close it (`async with`) before the Step returns: a seal allows no open socket.

        Args:
            timeout_s: of each network operation; None: the profile's `timeouts.step_s`.
            with_key: send the profile's key, if it has one.
        """
        import httpx  # deferred; `health.import_client` has done it in a thread, while the child was loading

        key = self.profile.api_key if with_key else None
        return httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key.reveal()}"} if key else {},
            timeout=self.profile.timeouts.step_s if timeout_s is None else timeout_s,
            trust_env=False,  # an ambient proxy variable can hang loopback probes
            verify=False,  # noqa: S501  plain HTTP over loopback: loading the CA bundle would cost 40 ms a client
        )
