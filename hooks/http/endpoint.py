"""A model server that runs elsewhere, at a URL: how Steps reach it, and a record of each request and its answer."""

from __future__ import annotations

import ipaddress
import ssl
import time
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import httpx

from hooks.http.text import shorten
from supervisor.child import Child
from supervisor.dialect import Dialect
from supervisor.errors import ProfileError
from supervisor.profile import Health, Profile, Timeouts
from supervisor.redact import MASK, Redactor, Secret

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

__all__ = ["Endpoint", "Exchange", "Visit"]

CONNECT_S: Final = 10.0  # a black hole must not use up the deadline in one attempt; a queue in a platform's proxy may
_SHOWN_BYTES: Final = 4096
_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where an OpenAI-compatible server answers, and with which key.

    On this host itself, the environment's proxy variables are not obeyed (they can hang loopback); for any other host
    they are (`HTTPS_PROXY`, `NO_PROXY`, `SSL_CERT_FILE`), because there may be no other way out.

    Attributes:
        url: `http` or `https`, with a path prefix if need be. A trailing `/v1`, as clients are configured with, goes.
        api_key: sent as `Authorization: Bearer`.
        open_access: it is meant to answer without a key.
        model: the name to ask for; None: the first that the server lists.
        dialect: how its engine speaks; None: not known, and taken for that of any OpenAI-compatible server.
        timeout_s: of each network operation (connecting: 10 s at most), so also of a whole answer without streaming.

    Raises:
        ProfileError: not such a URL, a key that no header can carry, a key together with `open_access`, a blank model,
            a timeout that is not positive.
    """

    url: str
    api_key: Secret | None = None
    open_access: bool = False
    model: str | None = None
    dialect: Dialect | None = None
    timeout_s: float = 120.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", _base(self.url))
        self.visit()  # the profile checks the rest

    def visit(self) -> Visit:
        """A Child for Steps, with an empty record; nothing is sent."""
        parts = urlsplit(self.url)
        assert parts.hostname
        profile = Profile(
            name="endpoint",
            command=("(started elsewhere)",),
            host=parts.hostname,
            port=parts.port or _PORTS[parts.scheme],
            api_key=self.api_key,
            open_access=self.open_access,
            health=Health(model_id=self.model),
            timeouts=Timeouts(step_s=self.timeout_s),
            dialect=self.dialect or Dialect(),
        )
        return Visit(profile=profile, port=profile.port, pid=None, redact=Redactor(profile.secrets), base_url=self.url)


@dataclass(slots=True, kw_only=True)
class Exchange:
    """One request and what came back, as it comes.

    Attributes:
        what: method and path.
        began: when it was sent, before connecting; `time.monotonic()`.
        status: of HTTP; None until there is one.
        chunks: the body's pieces and when each came.
    """

    what: str
    began: float
    status: int | None = None
    chunks: list[tuple[float, bytes]] = field(default_factory=list)

    def show(self, redact: Redactor) -> str:
        """One line for a report: redacted, the middle of a long body cut out."""
        if self.status is None:
            return f"{self.what}: no answer"
        head, whole = bytearray(), True
        for _, chunk in self.chunks:
            whole = len(head) + len(chunk) <= _SHOWN_BYTES
            head += chunk[: _SHOWN_BYTES - len(head)]
            if not whole:
                break
        text = head.decode(errors="replace")
        body = shorten(redact(text) if whole else redact.cut(text))
        return f"{self.what}: HTTP {self.status}, {body or 'an empty body'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit(Child):
    """A Child that somebody else started: every Step works on it. It has no pid and no log.

    Attributes:
        base_url: of the server, without a trailing slash.
        exchanges: every request that its clients made, in order.
    """

    base_url: str
    exchanges: list[Exchange] = field(default_factory=list)

    @property
    def url(self) -> str:
        """The base URL without a trailing slash."""
        return self.base_url

    def client(self, *, timeout_s: float | None = None, with_key: bool = True) -> httpx.AsyncClient:
        """See `Child.client`; this one records, and obeys the environment's proxies unless the server is local."""
        key = self.profile.api_key if with_key else None
        limit_s = self.profile.timeouts.step_s if timeout_s is None else timeout_s
        return httpx.AsyncClient(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key.reveal()}"} if key else {},
            verify=_tls(not _is_local(self.profile.host)),
            timeout=httpx.Timeout(limit_s, connect=min(limit_s, CONNECT_S)),
            trust_env=not _is_local(self.profile.host),
            event_hooks={"request": [self._sent], "response": [self._answered]},
        )

    def alone(self) -> Visit:
        """The same server with a record of its own, so that requests at the same time can be told apart."""
        return replace(self, exchanges=[])

    async def _sent(self, request: httpx.Request) -> None:
        exchange = Exchange(what=f"{request.method} {request.url.path}", began=time.monotonic())
        request.extensions["exchange"] = exchange
        self.exchanges.append(exchange)

    async def _answered(self, response: httpx.Response) -> None:
        exchange: Exchange = response.request.extensions["exchange"]
        exchange.status = response.status_code
        assert isinstance(response.stream, httpx.AsyncByteStream)
        response.stream = _Recorded(response.stream, exchange)


class _Recorded(httpx.AsyncByteStream):
    """A body on its way to the reader, noted down."""

    def __init__(self, body: httpx.AsyncByteStream, exchange: Exchange) -> None:
        self._body = body
        self._exchange = exchange

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._body:
            self._exchange.chunks.append((time.monotonic(), chunk))
            yield chunk

    async def aclose(self) -> None:
        await self._body.aclose()


@cache
def _tls(trust_env: bool) -> ssl.SSLContext:
    """Made once: it takes 40 ms, which would come between requests that are meant to be sent at the same time."""
    return httpx.create_ssl_context(trust_env=trust_env)


def _base(url: str) -> str:
    try:
        parts = urlsplit(url)
        host_given = bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets without an address, a port that is no number
        raise ProfileError(field="url", value=url, allowed="http://HOST or https://HOST") from None
    if parts.username is not None or parts.password is not None:
        raise ProfileError(field="url", value=MASK, allowed="without a user and a password (the key goes elsewhere)")
    if parts.scheme not in _PORTS or not host_given or parts.query or parts.fragment or not url.isprintable():
        raise ProfileError(field="url", value=url, allowed="http://HOST or https://HOST, without a query")
    path = parts.path.rstrip("/").removesuffix("/v1").rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path}"


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
