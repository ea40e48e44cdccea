"""The real image server before the pipeline of `fakes.image_pipeline`, for tests of both."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from supervisor.child import Child
from supervisor.engines.images import Images
from supervisor.profile import Profile
from supervisor.redact import Redactor, Secret
from support import TESTS, free_port, until

KEY = "sk-made-up-for-tests"
ROUTE = "/v1/images/generations"
SMALL: dict[str, Any] = {"prompt": "a", "size": "16x16", "seed": 1}


def pipeline(folder: Path, **faults: Any) -> Path:
    """A folder with a pipeline that misbehaves so; see `fakes.image_pipeline`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights.safetensors").write_bytes(b"weights")
    (folder / "faults.json").write_text(json.dumps(faults))
    return folder


def images(folder: Path, **settings: Any) -> Images:
    """Settings of the server before such a pipeline."""
    defaults: dict[str, Any] = {
        "python": sys.executable,
        "model": folder,
        "pipeline": "fakes.image_pipeline:TinyPipeline",
        "served_name": "tiny",
        "dtype": "auto",
        "device": "cpu",
        "size": "32x16",
        "max_side": 256,
        "api_key": None if settings.get("open_access") else Secret(KEY),
        "env": {"PYTHONPATH": str(TESTS)},
    }
    return Images(**(defaults | settings))


@dataclass(kw_only=True)
class Server:
    """A running server.

    Attributes:
        process: of it.
        port: where it listens.
        profile: of its settings.
        lines: its log so far.
    """

    process: subprocess.Popen[str]
    port: int
    profile: Profile
    lines: list[str] = field(default_factory=list)

    @property
    def child(self) -> Child:
        """As Steps see it."""
        redact = Redactor(self.profile.secrets)
        return Child(profile=self.profile, port=self.port, pid=self.process.pid, redact=redact)

    def client(self, **headers: str) -> httpx.Client:
        """A client with the key."""
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"Authorization": f"Bearer {KEY}"} | headers,
            trust_env=False,
            timeout=30,
            verify=False,  # noqa: S501  # plain HTTP: reading the CA bundle takes longer than the request
        )

    def post(self, body: Mapping[str, Any] | bytes, **headers: str) -> httpx.Response:
        """Ask for images on a connection of its own."""
        with self.client(**headers) as client:
            return client.post(ROUTE, content=body if isinstance(body, bytes) else json.dumps(body).encode())

    def get(self, path: str) -> httpx.Response:
        """Ask for a page on a connection of its own."""
        with self.client() as client:
            return client.get(path)

    def health(self) -> tuple[int, dict[str, Any]]:
        """Status and body of its health; (0, {}) when it does not listen."""
        try:
            answer = self.get("/health")
        except httpx.TransportError:
            return 0, {}
        return answer.status_code, answer.json()

    def count(self, name: str) -> float:
        """A sample of its metrics page."""
        page = self.get("/metrics").text
        return float(next(line.split()[-1] for line in page.splitlines() if line.startswith(f"{name} ")))

    def wait_ready(self) -> None:
        """Return once it is healthy."""
        until(lambda: self.health()[0] == 200 or self.process.poll() is not None, "healthy")
        assert self.process.poll() is None, self.lines

    def signal(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send it a signal."""
        self.process.send_signal(number)


@contextmanager
def running(folder: Path, *, ready: bool = True, **settings: Any) -> Iterator[Server]:
    """The server as a process, killed at the end; `ready`: wait until it is."""
    profile = images(folder, **settings).profile()
    port = profile.port or free_port()
    argv = [word.replace("{host}", "127.0.0.1").replace("{port}", str(port)) for word in profile.command]
    key = {profile.api_key_env: profile.api_key.reveal()} if profile.api_key and profile.api_key_env else {}
    env = os.environ | {name: str(value) for name, value in profile.env.items()} | key
    with subprocess.Popen(argv, env=env, stderr=subprocess.PIPE, text=True) as process:
        server = Server(process=process, port=port, profile=profile)
        reader = threading.Thread(target=lambda: server.lines.extend(_lines(process)))
        reader.start()
        try:
            until(lambda: server.health()[0] or process.poll() is not None, "listening")
            if ready:
                server.wait_ready()
            yield server
        finally:
            process.kill()
            reader.join()


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stderr
    for line in process.stderr:
        yield line.rstrip("\n")
