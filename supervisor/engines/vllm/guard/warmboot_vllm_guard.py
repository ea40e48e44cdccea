"""ASGI middleware inside of vLLM's API server: who may ask which route.

vLLM itself asks for its key on `/v1`, `/v2`, `/inference` and `/cohere` only (0.32.0, entrypoints/serve/middleware/
authenticate.py): `/invocations` generates for everybody, and so does each route of the server's administration once
`VLLM_SERVER_DEV_MODE` opens it: `/sleep`, `/collective_rpc`, `/update_weights`. Here a route is open only if it is
listed as open; whatever is neither open nor listed as serving is administration.

Run by vLLM's interpreter, in vLLM's environment: `--middleware warmboot_vllm_guard.Guard`, with this file's folder on
`PYTHONPATH`. So it imports the standard library alone, and nothing else lies beside it.
"""

import hmac
import json
import os
from typing import Any

OPEN = frozenset({"/health", "/metrics", "/ping", "/version"})
SERVING = frozenset(
    (
        *("/invocations", "/tokenize", "/detokenize", "/pooling", "/classify", "/score", "/rerank"),
        *("/generative_scoring", "/load", "/tokenizer_info", "/openapi.json"),
    )
)
SERVING_BELOW = ("/v1/", "/v2/", "/inference/", "/cohere/")
API_KEY = "VLLM_API_KEY"
ADMIN_KEY = "WARMBOOT_VLLM_ADMIN_KEY"
OPEN_ACCESS = "WARMBOOT_VLLM_OPEN_ACCESS"


class Guard:
    """Answers 401 to whoever lacks the key of a route.

    The key of a serving route is `VLLM_API_KEY`; with `WARMBOOT_VLLM_OPEN_ACCESS=1` it needs none. The key of any other
    route that is not open is `WARMBOOT_VLLM_ADMIN_KEY`, or `VLLM_API_KEY` where there is no such variable. A route
    whose key nobody set lets nobody in.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        api_key = os.environ.get(API_KEY, "")
        self.serving_key = None if os.environ.get(OPEN_ACCESS) == "1" else api_key
        self.admin_key = os.environ.get(ADMIN_KEY) or api_key

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] not in ("http", "websocket") or self.admits(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # before it was accepted: HTTP 403
        else:
            body = json.dumps({"error": "Unauthorized"}).encode()
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    def admits(self, scope: Any) -> bool:
        """Tell whether this request may pass."""
        path = scope["path"]
        serving = path in SERVING or path.startswith(SERVING_BELOW)
        if path in OPEN or (serving and scope.get("method") == "OPTIONS"):  # browsers ask without a key what they may
            return True
        key = self.serving_key if serving else self.admin_key
        return key is None or (key != "" and any(hmac.compare_digest(given, key.encode()) for given in bearers(scope)))


def bearers(scope: Any) -> list[bytes]:
    """Return the tokens of the `Authorization: Bearer` headers: of none, or of one; of two, neither counts."""
    given = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
    parts = [value.split(b" ", 1) for value in given] if len(given) == 1 else []
    return [part[1].strip() for part in parts if len(part) == 2 and part[0].lower() == b"bearer"]
