"""One request to the server over HTTP, bounded in time and in memory, and a typed result."""

from __future__ import annotations

import contextlib
import enum
import importlib
import ssl
import sys
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread

from supervisor.child import Child
from supervisor.linux.exhaustion import detect

if TYPE_CHECKING:
    import httpx

MAX_BODY_BYTES: Final = 1 << 20
# Compressed, a few KiB of body could unfold to hundreds of MiB.
_HEADERS: Final = {"Accept-Encoding": "identity"}
_TLS_RECORDS: Final = frozenset({0x15, 0x16})  # alert, handshake
_SHOWN_BYTES: Final = 40


class Why(enum.Enum):
    """What kind of failure a check met."""

    REFUSED = enum.auto()  # nobody accepts connections
    TIMED_OUT = enum.auto()  # no whole answer in time, which a server that works may do
    BUSY = enum.auto()  # the same, while the server was seen to work
    NOT_YET = enum.auto()  # the server answers, and says that it cannot serve
    WRONG_PATH = enum.auto()  # the server answers, but does not know the path or points elsewhere
    NOT_HTTP = enum.auto()  # the listener speaks TLS or something else
    BROKEN = enum.auto()  # the connection, or a Step, failed in another way
    FOREIGN = enum.auto()  # somebody else listens there too
    OUT_OF_RESOURCES = enum.auto()  # this process has no descriptor, thread or memory left; says nothing of the server


@dataclass(frozen=True, slots=True, kw_only=True)
class NotUp:
    """A check that failed.

    Attributes:
        why: the kind of failure.
        detail: what was seen, in a few words, redacted.
    """

    why: Why
    detail: str


async def import_client() -> None:
    """Imports httpx in a thread, once: its 100 ms and more must not hold up the log pump or the sight of an exit."""
    if "httpx" not in sys.modules:
        await anyio.to_thread.run_sync(importlib.import_module, "httpx", abandon_on_cancel=True)


async def probe(client: httpx.AsyncClient, child: Child) -> NotUp | None:
    """One health probe: None when the server says that it is up. Never raises for an answer."""
    health = child.profile.health
    answer = await get(client, child, health.path)
    if isinstance(answer, NotUp):
        return answer
    status, body = answer
    try:
        # Masked before it is judged: a judgement may quote, and cut, what it sees.
        why_not = health.accept(status, child.redact(body))
    except Exception as error:  # noqa: BLE001  the user's function may raise anything
        why_not = f"health.accept raised {type(error).__name__}: {error}"
    if why_not is None:
        return None
    detail = child.redact(str(why_not))
    if status in (404, 405, 410) or 300 <= status < 400:
        # Only the profile's author knows the right path; redirects are not followed, because they may lead anywhere.
        return NotUp(
            why=Why.WRONG_PATH,
            detail=f"{detail} (is {health.path} the health path? `--health PATH`, Health.path in a profile, sets it)",
        )
    return NotUp(why=Why.NOT_YET, detail=detail)


async def get(client: httpx.AsyncClient, child: Child, path: str) -> tuple[int, str] | NotUp:
    """GET within the profile's `probe_s`: the status and at most 1 MiB of the body, or why there is no answer."""
    limit_s = child.profile.timeouts.probe_s
    try:
        with anyio.fail_after(limit_s):  # for the whole exchange; httpx's own limit is per operation
            return await _fetch(client, path)
    except Exception as error:  # noqa: BLE001  translated: httpx is not imported at module level
        return await _translate(error, child, limit_s)


def out_of_resources(error: BaseException) -> NotUp | None:
    """The failed check, when this process ran out of something; None: the error has another reason."""
    found = detect(error)
    return None if found is None else NotUp(why=Why.OUT_OF_RESOURCES, detail=f"out of resources here: {found.reason}")


async def get_text(client: httpx.AsyncClient, child: Child, path: str) -> str | None:
    """The body of a 200 answer, else None. Never raises for an answer."""
    answer = await get(client, child, path)
    return answer[1] if isinstance(answer, tuple) and answer[0] == 200 else None


async def _fetch(client: httpx.AsyncClient, path: str) -> tuple[int, str]:
    async with client.stream("GET", path, headers=_HEADERS) as response:
        data = bytearray()
        with anyio.CancelScope() as enough:  # cancelled, not left: Trio minds a generator that is dropped half-way
            async for chunk in response.aiter_raw():
                data += chunk[: MAX_BODY_BYTES - len(data)]
                if len(data) >= MAX_BODY_BYTES:
                    enough.cancel()
        body = bytes(data)
        if response.headers.get("Content-Encoding", "identity") != "identity":  # sent although nobody asked for it
            with contextlib.suppress(zlib.error):
                body = zlib.decompressobj(wbits=47).decompress(body, MAX_BODY_BYTES)  # 47: gzip or zlib
        return response.status_code, body.decode("utf-8", "replace")


async def _translate(error: Exception, child: Child, limit_s: float) -> NotUp:
    import httpx

    if failure := out_of_resources(error):
        return failure
    match error:
        case TimeoutError() | httpx.TimeoutException():
            return NotUp(why=Why.TIMED_OUT, detail=f"no answer within {limit_s:g} s")
        case httpx.ConnectError():
            return NotUp(why=Why.REFUSED, detail="connection refused")
        case httpx.RemoteProtocolError() | httpx.ReadError() | httpx.WriteError():
            if not_http := await _what_listens(child, limit_s):
                return NotUp(why=Why.NOT_HTTP, detail=f"port {child.port} {not_http}")
    if isinstance(error, httpx.HTTPError | OSError):
        return NotUp(
            why=Why.BROKEN, detail=child.redact(f"the connection broke ({str(error) or type(error).__name__})")
        )
    raise error


async def _what_listens(child: Child, limit_s: float) -> str | None:
    """What a listener speaks that answers the beginning of a TLS handshake, if it is not HTTP; None: it does not tell.

    A server that speaks TLS answers with a record of TLS, one that speaks HTTP with HTTP or not at all, and others
    often greet or complain.
    """
    said = b""
    with contextlib.suppress(OSError, anyio.BrokenResourceError, anyio.EndOfStream), anyio.move_on_after(limit_s):
        async with await anyio.connect_tcp(child.host, child.port) as stream:
            await stream.send(_client_hello())
            while len(said) < _SHOWN_BYTES:
                said += await stream.receive(_SHOWN_BYTES)
    if len(said) >= 2 and said[0] in _TLS_RECORDS and said[1] == 3:  # 3: the major version of all of TLS
        return "speaks TLS, and probes speak plain HTTP: turn TLS off in the server"
    if not said or said.startswith(b"HTTP/"):
        return None
    words = child.redact.cut(said.decode("utf-8", "replace")).split("\n")[0].strip()
    return f"does not speak HTTP; it says {words!r}"


def _client_hello() -> bytes:
    """How a TLS client begins."""
    outgoing = ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # nothing more is sent, and nothing is believed
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing).do_handshake()
    return outgoing.read()
