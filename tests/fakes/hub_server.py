"""A local server that speaks the model hub's HTTP, as huggingface-hub 2.x asks for it, with faults on demand.

`GET /api/models/REPO/revision/REV?blobs=True` lists sizes and hashes; `HEAD` and `GET /REPO/resolve/REV/FILE` answer
with a redirect to a content address (as the hub does for large files), with `X-Repo-Commit`, `X-Linked-Size` and
`X-Linked-Etag`; the content address serves ranges. All paths but the last want the token, if there is one.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

REPO = "someone/tiny-GGUF"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Request:
    """One that came in."""

    method: str
    path: str
    token: str | None
    range: str | None


@dataclass
class Hub:
    """What is served, how it is to fail, and what was asked.

    Attributes:
        files: content by path.
        token: what `Authorization` must carry; None: nobody is asked.
        refusal: the status for those who do not have it.
        unavailable: so many answers to GET are 503, by the kind of path: `api` or `content`.
        cut_at: the first answer for a file breaks off after so many bytes.
        served: other bytes than the listed ones, by path: corrupt or short.
        listed_sizes: other sizes than the true ones, by path.
        small: paths that are listed without a hash, as files outside of large-file storage are.
    """

    files: Mapping[str, bytes]
    token: str | None = None
    refusal: int = 401
    unavailable: dict[str, int] = field(default_factory=dict)
    cut_at: dict[str, int] = field(default_factory=dict)
    served: dict[str, bytes] = field(default_factory=dict)
    listed_sizes: dict[str, int] = field(default_factory=dict)
    small: frozenset[str] = frozenset()
    requests: list[Request] = field(default_factory=list)
    url: str = ""
    content_url: str = ""

    def etag(self, path: str) -> str:
        """A sha256 for large files, another hash for small ones."""
        algorithm = "sha1" if path in self.small else "sha256"
        return hashlib.new(algorithm, self.files[path]).hexdigest()

    def size(self, path: str) -> int:
        """As the listing says it."""
        return self.listed_sizes.get(path, len(self.files[path]))

    def of(self, method: str, part: str) -> list[Request]:
        """Requests of one method whose path holds a part."""
        return [request for request in self.requests if request.method == method and part in request.path]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._serve(body=False)

    def do_GET(self) -> None:
        self._serve(body=True)

    def log_message(self, *_: object) -> None:
        """Nothing: tests look at `requests`."""

    def _serve(self, *, body: bool) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path)
        authorization = self.headers.get("Authorization")
        hub.requests.append(
            Request(method=self.command, path=path, token=authorization, range=self.headers.get("Range"))
        )
        kind = "content" if path.startswith("/content/") else "api"
        if body and hub.unavailable.get(kind, 0) > 0:
            hub.unavailable[kind] -= 1
            return self._answer(503, b"busy", {})
        if kind == "content":
            return self._content(path.removeprefix("/content/"), body=body)
        if hub.token and authorization != f"Bearer {hub.token}":
            gated = {"X-Error-Code": "GatedRepo"} if hub.refusal == 401 else {}
            return self._answer(hub.refusal, b"{}", {"X-Error-Message": "Access is restricted", **gated})
        if path in (f"/api/models/{REPO}/revision/main", f"/api/models/{REPO}/revision/{COMMIT}"):
            return self._answer(200, json.dumps(self._listing()).encode(), {"Content-Type": "application/json"})
        prefix = f"/{REPO}/resolve/{COMMIT}/"
        if path.startswith(prefix) and (name := path.removeprefix(prefix)) in hub.files:
            headers = {
                "X-Repo-Commit": COMMIT,
                "X-Linked-Size": str(hub.size(name)),
                "X-Linked-Etag": f'"{hub.etag(name)}"',
                "Location": f"{hub.content_url}/content/{name}",
            }
            return self._answer(302, b"", headers, body=body)
        code = "RevisionNotFound" if "/revision/" in path else "EntryNotFound"
        return self._answer(404, b"{}", {"X-Error-Code": code}, body=body)

    def _listing(self) -> dict[str, Any]:
        siblings = []
        for path in self.hub.files:
            size = self.hub.size(path)
            entry: dict[str, Any] = {"rfilename": path, "size": size, "blobId": "0" * 40}
            if path not in self.hub.small:
                entry["lfs"] = {"size": size, "sha256": self.hub.etag(path), "pointerSize": 130}
            siblings.append(entry)
        return {"_id": "1", "id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": siblings, "tags": []}

    def _content(self, name: str, *, body: bool) -> None:
        data = self.hub.served.get(name, self.hub.files[name])
        headers = {"ETag": f'"{self.hub.etag(name)}"', "Accept-Ranges": "bytes"}
        status = 200
        if wanted := self.headers.get("Range"):
            begin = int(wanted.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
            data, status = data[begin:], 206
        self._answer(status, data, headers, body=body, cut_at=self.hub.cut_at.pop(name, None) if body else None)

    def _answer(
        self, status: int, data: bytes, headers: Mapping[str, str], *, body: bool = True, cut_at: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | dict(headers)).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data[:cut_at])
        if cut_at is not None:
            self.close_connection = True


@contextmanager
def serving(files: Mapping[str, bytes], **faults: Any) -> Iterator[Hub]:
    """A hub on free ports of the loopback, until the block ends; content has a host of its own, as the hub's has."""
    hub = Hub(files=files, **faults)
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as api, ThreadingHTTPServer(("127.0.0.2", 0), handler) as store:
        hub.url = f"http://127.0.0.1:{api.server_address[1]}"
        hub.content_url = f"http://127.0.0.2:{store.server_address[1]}"
        threads = [threading.Thread(target=server.serve_forever, args=(0.01,)) for server in (api, store)]
        for thread in threads:
            thread.start()
        try:
            yield hub
        finally:
            for server, thread in zip((api, store), threads, strict=True):
                server.shutdown()
                thread.join()
