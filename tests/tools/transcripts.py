"""What a real engine says, captured into tests/testdata, and read back by the tests of its dialect.

    PYTHONPATH=tests python -m tools.transcripts embedded

starts the engine, asks it what the tests need, and writes one file an answer: `GET /health -> 503`, a blank line, and
the body as it came. Run it again after an upgrade of the engine, and look at the difference.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import httpx

from supervisor.engines import embedded
from supervisor.profile import Profile
from supervisor.redact import Secret
from support import TESTS, free_port

TESTDATA: Final = TESTS / "testdata"
_KEY: Final = "sk-made-up-for-tests"
_START_S: Final = 300.0
_ANSWER_S: Final = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One request and its answer."""

    method: str
    path: str
    status: int
    body: str

    def text(self) -> str:
        """The exchange as it is kept in a file."""
        return f"{self.method} {self.path} -> {self.status}\n\n{self.body}\n"


def exchange(engine: str, name: str) -> Exchange:
    """The captured exchange of that name."""
    head, _, body = (TESTDATA / engine / f"{name}.txt").read_text(encoding="utf-8").partition("\n\n")
    method, path, _, status = head.split()
    return Exchange(method=method, path=path, status=int(status), body=body.removesuffix("\n"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """An engine to capture.

    Attributes:
        version: of what is captured, for the README.
        profile: how it is started; its key is `_KEY`.
        help: the arguments that make it print its help, after the program's.
        asks: name -> request; a body makes it a POST.
        long_request: keeps the engine busy while its requests in flight are read.
        without_key: routes that are asked without the key, with POST and an empty body.
        failures: name -> further arguments with which the engine cannot start, and the MiB of address space it gets.
    """

    version: str
    profile: Profile
    help: tuple[str, ...]
    asks: Mapping[str, tuple[str, Mapping[str, Any] | None]]
    long_request: tuple[str, Mapping[str, Any]]
    without_key: tuple[str, ...]
    failures: Mapping[str, tuple[tuple[str, ...], int]] = field(default_factory=dict)


def capture(name: str, engine: Engine) -> None:
    """Run the engine once, and write everything below `tests/testdata/NAME`."""
    folder = TESTDATA / name
    folder.mkdir(exist_ok=True)
    port = free_port()
    profile = engine.profile
    argv = [word.replace("{host}", profile.host).replace("{port}", str(port)) for word in profile.command]
    assert profile.api_key_env
    env = {**os.environ, **{key: str(value) for key, value in profile.env.items()}, profile.api_key_env: _KEY}
    shown = subprocess.run(engine.help, env=env, check=True, capture_output=True, text=True)
    _write(folder / "help.txt", shown.stdout)
    with tempfile.TemporaryFile() as log, subprocess.Popen(argv, env=env, stdout=log, stderr=log) as process:
        try:
            url = f"http://{profile.host}:{port}"
            with httpx.Client(base_url=url, trust_env=False, timeout=_ANSWER_S) as client:
                _capture_load(process, client, profile.health.path, folder)
                _capture_answers(client, engine, folder)
        finally:
            process.terminate()
            process.wait(60)
        log.seek(0)
        _write(folder / "engine.log", log.read().decode())
    for case, (extra, memory_mib) in engine.failures.items():
        _capture_failure((*argv, *extra), env, memory_mib, folder / f"{case}.log")
    _write_readme(folder, name, engine)


def _capture_failure(argv: tuple[str, ...], env: Mapping[str, str], memory_mib: int, path: Path) -> None:
    """The log of a start that cannot succeed, within so much address space."""
    limited = ("sh", "-c", f'ulimit -v {memory_mib << 10}; exec "$@"', "sh", *argv)
    done = subprocess.run(limited, env=env, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode, f"{path.name}: it ended as if nothing were wrong"
    _write(path, done.stdout)


def _capture_load(process: subprocess.Popen[bytes], client: httpx.Client, path: str, folder: Path) -> None:
    """The last health answer before the engine was up, and the first after."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            answer = client.get(path, timeout=5)
        except httpx.TransportError:
            time.sleep(0.002)
            continue
        up = answer.status_code == 200
        _keep(folder, "health" if up else "health-loading", answer)
        if up:
            return
    raise RuntimeError(f"not up; exit code {process.returncode}")


def _capture_answers(client: httpx.Client, engine: Engine, folder: Path) -> None:
    refused = {path: client.post(path, json={}).status_code for path in engine.without_key}
    (folder / "without-key.json").write_text(json.dumps(refused, indent=1) + "\n", encoding="utf-8")
    client.headers["Authorization"] = f"Bearer {_KEY}"
    for name, (path, body) in engine.asks.items():
        _keep(folder, name, client.get(path) if body is None else client.post(path, json=body))
    with ThreadPoolExecutor(1) as pool:
        path, body = engine.long_request
        answer = pool.submit(client.post, path, json=body)
        for reading in engine.profile.dialect.requests:
            reply = client.get(reading.path)
            while not reading.read(reply.text):
                assert not answer.done(), f"{reading.path} never counted the request"
                reply = client.get(reading.path)
            _keep(folder, f"{reading.path.strip('/').replace('/', '-')}-busy", reply)
        answer.result()


def _keep(folder: Path, name: str, answer: httpx.Response) -> None:
    request = answer.request
    kept = Exchange(
        method=request.method, path=request.url.raw_path.decode(), status=answer.status_code, body=_clean(answer.text)
    )
    (folder / f"{name}.txt").write_text(kept.text(), encoding="utf-8")


def _write(path: Path, text: str) -> None:
    path.write_text(_clean(text), encoding="utf-8")


def _clean(text: str) -> str:
    """The text without the key and without the places of this machine."""
    text = text.replace(_KEY, "KEY").replace(str(Path.home()), "/home/user").replace(sys.prefix, "/venv")
    return re.sub(r"(127\.0\.0\.1|localhost):\d+", r"\1:8080", text)


def _write_readme(folder: Path, name: str, engine: Engine) -> None:
    readme = (
        f"{engine.version}, captured {datetime.now(UTC):%Y-%m-%d} on {platform.system()} {platform.machine()} by\n"
        f"`PYTHONPATH=tests python -m tools.transcripts {name}`. Paths of the machine and the key are replaced.\n"
    )
    (folder / "README").write_text(readme, encoding="utf-8")


def embedded_engine() -> Engine:
    """llama.cpp's own server inside a Python process, with Gemma 3 270M."""
    import xllamacpp

    embedded.assemble(embedded.model_path())
    greedy = dict(embedded.EMBEDDED.repeatable(1))
    question = [{"role": "user", "content": "What is the capital of France?"}]
    return Engine(
        version=f"xllamacpp {xllamacpp.__version__} (llama.cpp) with Gemma 3 270M Q4_K_M",
        profile=embedded.profile(ctx_size=1024, threads=2, api_key=Secret(_KEY)),
        help=(*embedded.PROGRAM, "--help"),
        asks={
            "models": ("/v1/models", None),
            "props": ("/props", None),
            "slots": ("/slots", None),
            "metrics-fresh": ("/metrics", None),
            "chat": (
                "/v1/chat/completions",
                {"messages": question, "max_tokens": 4, "logprobs": True, "top_logprobs": 1, **greedy},
            ),
            "completion": ("/v1/completions", {"prompt": "The sea is", "max_tokens": 8, **greedy}),
            "responses": ("/v1/responses", {"input": "Say hello.", "max_output_tokens": 2, "temperature": 0}),
            "messages": ("/v1/messages", {"messages": question, "max_tokens": 2, "temperature": 0}),
            "embeddings": ("/v1/embeddings", {"input": "Hi"}),
            "chat-refused": ("/v1/chat/completions", {}),
            "metrics": ("/metrics", None),
        },
        long_request=("/v1/completions", {"prompt": "Once", "max_tokens": 48, "ignore_eos": True}),
        without_key=tuple(request.path for request in embedded.EMBEDDED.generating),
        failures={"out-of-memory": (("--ctx-size", "4000000"), 6000), "no-model": (("--model", "/nowhere.gguf"), 6000)},
    )


ENGINES: Final = {"embedded": embedded_engine}

if __name__ == "__main__":
    for wanted in sys.argv[1:] or ENGINES:
        capture(wanted, ENGINES[wanted]())
