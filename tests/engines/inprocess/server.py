"""A model in a Python server's own process: `python server.py MODEL.gguf PORT`; the key is in `API_KEY`.

It has OpenAI's routes for chats and the list of models, and no /health: its list of models, there once the model is
loaded, says that it is up. Requests wait for each other, in threads, so that the list answers meanwhile.
"""

from __future__ import annotations

import hmac
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
import xllamacpp
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

if TYPE_CHECKING:
    from starlette.requests import Request

KEY = os.environ.get("API_KEY", "")


def load(model: str) -> Any:
    """Load the model into this process."""
    params = xllamacpp.CommonParams()
    params.model.path, params.model_alias = model, {Path(model).stem}
    params.n_ctx, params.n_parallel, params.cache_ram_mib, params.fit_params = 512, 1, 0, False
    params.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_NONE
    if KEY:
        params.api_keys = [KEY]
    with tempfile.TemporaryDirectory() as folder:  # the library serves by itself too: here where nobody can reach it
        params.hostnames = [f"{folder}/own.sock"]
        return xllamacpp.Server(params)


def application(model: str) -> Starlette:
    """Return the server's routes."""
    engine = load(model)

    def refused(request: Request) -> Response | None:
        given = request.headers.get("authorization", "").encode()
        if not KEY or hmac.compare_digest(given, f"Bearer {KEY}".encode()):
            return None
        return JSONResponse({"error": {"message": "Invalid API Key", "type": "authentication_error"}}, 401)

    async def models(request: Request) -> Response:
        entry = {"id": Path(model).stem, "object": "model", "owned_by": "me"}
        return refused(request) or JSONResponse({"object": "list", "data": [entry]})

    async def chat(request: Request) -> Response:
        if no := refused(request):
            return no
        try:
            return JSONResponse(await run_in_threadpool(engine.handle_chat_completions, await request.json()))
        except (ValueError, RuntimeError) as error:
            return JSONResponse({"error": {"message": str(error), "type": "invalid_request_error"}}, 400)

    return Starlette(routes=[Route("/v1/models", models), Route("/v1/chat/completions", chat, methods=["POST"])])


if __name__ == "__main__":
    uvicorn.run(application(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
