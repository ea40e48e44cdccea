"""One request to a server, on a connection of its own."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, NoReturn

import anyio

from hooks.http.answer import Answer
from hooks.http.images import are_asked
from hooks.http.text import shorten
from supervisor.timing.limits import running_limit

if TYPE_CHECKING:
    from collections.abc import Mapping

    import httpx

    from supervisor.child import Child

__all__ = ["ask"]

MAX_BODY_BYTES: Final = 4 * 1024 * 1024
_MAX_PICTURES_BYTES: Final = 64 * 1024 * 1024  # noise of 2048x2048 is 17 MB of PNG in base64


async def ask(
    child: Child,
    path: str,
    body: Mapping[str, Any] | None = None,
    *,
    with_key: bool = True,
    headers: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
) -> Answer:
    """Sends one request on a connection of its own, which is closed on return, also when it is cancelled.

    Args:
        child: the server.
        path: the route, with its leading slash.
        body: sent as JSON with POST; None: a GET.
        with_key: send the profile's key, if it has one.
        headers: sent in addition.
        timeout_s: until the answer begins, and from each piece of it to the next, without the time in which this
            process was suspended; None: the profile's `timeouts.step_s`.

    Returns:
        The answer, whatever its status.

    Raises:
        BadAnswer: no answer came, or only a part of one, or more than 4 MiB; of the route for images, 64 MiB.
    """
    import httpx  # 100 ms of import, deferred until there is a child to ask

    limit_s = child.profile.timeouts.step_s if timeout_s is None else timeout_s
    most = _MAX_PICTURES_BYTES if are_asked(child, path) else MAX_BODY_BYTES
    response: httpx.Response | None = None
    data = bytearray()

    def answer(status: int | None, body: str, *, whole: bool) -> Answer:
        return Answer(status=status, body=body, redact=child.redact, whole=whole, dialect=child.profile.dialect)

    def fail(reason: str, cause: Exception | None) -> NoReturn:
        status = response.status_code if response is not None else None
        text = data.decode(errors="replace")
        raise answer(status, text, whole=False).bad(reason) from cause

    # Compressed, a few KiB of body could hold more than the limit.
    headers = {"Accept-Encoding": "identity", **(headers or {})}
    method = "GET" if body is None else "POST"
    try:
        async with (
            running_limit(limit_s) as limit,
            child.client(timeout_s=math.inf, with_key=with_key) as client,
            client.stream(method, path, json=body, headers=headers) as response,
        ):
            limit.restart()
            # Cancelled, not left: httpx's generators below warn when they are dropped half-way.
            with anyio.CancelScope() as enough:
                async for chunk in response.aiter_bytes():
                    limit.restart()
                    data += chunk
                    if len(data) > most:
                        enough.cancel()
    except httpx.LocalProtocolError:
        # No cause: its message quotes the header, and with it the key.
        fail("the request could not be sent: a header, probably the key, holds a character that HTTP forbids", None)
    except httpx.RequestError as error:
        fail(_words(error, None if response is None else len(data)), error)
    if limit.cancelled_caught or response is None:
        done = (
            "no answer came" if response is None else f"the answer stopped after {len(data)} bytes: nothing more came"
        )
        fail(f"{done} for {limit_s:g} s", None)
    if enough.cancel_called:
        del data[most:]
        fail(f"the answer is longer than {most} bytes, and was not read to its end", None)
    return answer(response.status_code, data.decode(errors="replace"), whole=True)


def _words(error: httpx.RequestError, received: int | None) -> str:
    """A transport failure in words; `received` bytes of the body came, None when not even a status did."""
    import httpx

    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return f"no connection to the server ({error or type(error).__name__})"
    if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError) and received is not None:
        return f"the connection was cut in the middle of the answer, after {received} bytes ({shorten(str(error))})"
    return f"the request failed: {shorten(str(error)) or type(error).__name__}"
