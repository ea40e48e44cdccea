"""All that a hook may see: `Child`, and the shapes of Steps and Observers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from supervisor.events import Event
from supervisor.profile import Profile
from supervisor.redact import Redactor

if TYPE_CHECKING:
    import httpx

Observer = Callable[[Event], None]
"""Sees every event, on the supervisor's thread; must neither block nor raise (a raise is caught and reported once)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """One life of the supervised server, as hooks see it.

    Attributes:
        profile: what was asked for.
        port: where this life listens (the chosen one when the profile says 0); 0 in `before_start`.
        pid: of the process, which is also its process group and session; None in `before_start`.
        cookie: tells this life's processes from all others, in and out of the session; None in `before_start`.
        redact: masks the profile's secrets; use it on anything of the server's that goes into an error.
    """

    profile: Profile
    port: int
    pid: int | None
    redact: Redactor
    cookie: str | None = None

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
        """The command of this life, not redacted; `{port}` stands where no port is chosen yet."""
        return tuple(map(self.fill, self.profile.command))

    @property
    def env(self) -> dict[str, str]:
        """What the profile sets in the environment of this life, its key included; not redacted."""
        profile = self.profile
        own = {
            name: self.fill(value) if isinstance(value, str) else value.reveal() for name, value in profile.env.items()
        }
        key = {profile.api_key_env: profile.api_key.reveal()} if profile.api_key and profile.api_key_env else {}
        return own | key

    def fill(self, text: str) -> str:
        """Substitutes `{host}` and `{port}`."""
        # Not str.format: arguments hold JSON with braces of its own.
        text = text.replace("{host}", self.profile.host)
        return text.replace("{port}", str(self.port)) if self.port else text

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


class Step(Protocol):
    """A piece of work at a lifecycle point; raising fails the point.

    Attributes:
        name: for events and errors.
        deadline_s: seconds that it may take; None: the profile's `timeouts.step_s`.
    """

    @property
    def name(self) -> str: ...

    @property
    def deadline_s(self) -> float | None: ...

    async def __call__(self, child: Child) -> None:
        """Do it; cancelled when the deadline passes, the child exits, or the supervision stops."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Steps by lifecycle point, in order, and observers.

    Attributes:
        before_start: before every spawn (artifacts present and whole).
        warmup: once health is green; READY only after all of them.
        before_seal: on the quiesced child; a failure refuses the seal and leaves the child READY.
        after_resume: once health is green again; a failure replaces the child, within the restart budget.
        before_stop: before TERM on a requested stop; failures are reported and do not prevent the stop.
        liveness: tiny real inferences for the watchdog (see `Liveness.inference_every_s`).
        observers: see every event.
    """

    before_start: tuple[Step, ...] = ()
    warmup: tuple[Step, ...] = ()
    before_seal: tuple[Step, ...] = ()
    after_resume: tuple[Step, ...] = ()
    before_stop: tuple[Step, ...] = ()
    liveness: tuple[Step, ...] = ()
    observers: tuple[Observer, ...] = ()
