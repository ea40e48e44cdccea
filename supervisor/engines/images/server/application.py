"""The routes: OpenAI's images and models, health and metrics; who has no key gets no further than health."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import time
from base64 import b64encode
from typing import TYPE_CHECKING, Any, Final

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from .order import Refusal, read

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.types import ASGIApp, Receive, Scope, Send

    from .desk import Desk
    from .options import Options

__all__ = ["OWNER", "build"]

OWNER: Final = "warmboot-images"
_OPEN: Final = frozenset({"/health"})
_MAX_BODY_BYTES: Final = 1 << 20
_GONE: Final = 499  # as nginx says that the client closed the request


def build(options: Options, desk: Desk, begin: Callable[[], None]) -> ASGIApp:
    """Build the application.

    Args:
        options: of the server.
        desk: takes the orders.
        begin: called once the event loop serves.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        begin()
        yield

    created = int(time.time())

    async def health(_: Request) -> Response:
        if refusal := desk.unavailable():
            return _refuse(refusal, status=refusal.code, **desk.state)
        return JSONResponse({"status": "ok", **desk.state})

    async def models(_: Request) -> Response:
        if refusal := desk.unavailable():
            return _refuse(refusal)
        model = {"id": options.name, "object": "model", "created": created, "owned_by": OWNER}
        return JSONResponse({"object": "list", "data": [model]})

    async def metrics(_: Request) -> Response:
        page = desk.metrics.page(running=desk.running, waiting=desk.waiting)
        return PlainTextResponse(page, media_type="text/plain; version=0.0.4")

    async def generations(request: Request) -> Response:
        try:
            answer = await _generate(request, options, desk)
        except Refusal as refusal:
            answer = _refuse(refusal)
        desk.metrics.answered(answer.status_code)
        return answer

    app = Starlette(
        routes=[
            Route("/health", health),
            Route("/metrics", metrics),
            Route("/v1/models", models),
            Route("/v1/images/generations", generations, methods=["POST"]),
        ],
        exception_handlers={HTTPException: _http_error},
        lifespan=lifespan,
    )
    return _guard(app, options.key)


async def _generate(request: Request, options: Options, desk: Desk) -> Response:
    if refusal := desk.unavailable():
        raise refusal
    try:
        order = read(_json(await _body(request)), options)
    except ClientDisconnect:
        return Response(status_code=_GONE)
    drawing = asyncio.ensure_future(desk.draw(order))
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({drawing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not drawing.done():
            drawing.cancel()
            with contextlib.suppress(asyncio.CancelledError, Refusal):
                await drawing
            return Response(status_code=_GONE)
        images = drawing.result()
    finally:
        drawing.cancel()
        leaving.cancel()
    rows = [{"b64_json": b64encode(image).decode(), "seed": order.seed + number} for number, image in enumerate(images)]
    width, height = order.size
    head = {"created": int(time.time()), "model": options.name, "size": f"{width}x{height}", "output_format": "png"}
    return JSONResponse({**head, "data": rows})


async def _left(request: Request) -> None:
    """Return when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request) -> bytes:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > _MAX_BODY_BYTES:
            raise Refusal(413, f"the body is longer than {_MAX_BODY_BYTES} bytes")
    return bytes(data)


def _json(data: bytes) -> object:
    def no_number(name: str) -> float:
        raise ValueError(f"{name} is not a number of JSON")

    try:
        value: object = json.loads(data, parse_constant=no_number)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is not JSON: {error}") from error
    return value


def _refuse(refusal: Refusal, **more: Any) -> Response:
    headers = {"Retry-After": str(refusal.retry_after_s)} if refusal.retry_after_s else {}
    if refusal.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    # Escaped: what is refused, and what a pipeline says of it, may hold half of a surrogate pair.
    body = json.dumps({**refusal.body(), **more}).encode()
    return Response(body, refusal.status, headers, media_type="application/json")


async def _http_error(_: Request, error: Exception) -> Response:
    """Starlette's own refusals (404, 405), as OpenAI's clients expect them."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    detail = error.detail if isinstance(error, HTTPException) else "internal error"
    return _refuse(Refusal(status, detail))


def _guard(app: ASGIApp, key: str | None) -> ASGIApp:
    """Let through who sends the key as a bearer token; the comparison takes the same time for every key."""
    wanted = None if key is None else key.encode()

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and wanted is not None and scope["path"] not in _OPEN:
            given = dict(scope["headers"]).get(b"authorization", b"")
            scheme, _, token = given.partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), wanted):
                refusal = Refusal(401, "the key is missing or wrong: Authorization: Bearer KEY", code="invalid_api_key")
                await _refuse(refusal)(scope, receive, send)
                return
        await app(scope, receive, send)

    return guarded
