#!/usr/bin/env python3
"""A stand-in for llama-server in router mode: a fake server for each model, started when it is asked for.

It takes --host, --port, --models-preset, --models-dir, --models-max, --models-autoload, --no-models-autoload, and
--metrics and --sleep-idle-seconds, which its models get too. A section of the preset is a model; its keys are flags of
the fake server, faults among them (`exit-while-loading = 7`), and `load-on-startup`. What it answers is what b11434
answered (tests/testdata/llama_cpp/router-*): /health is green at once, a crash is `failed` with exit code 1 whatever
the signal, a GET that names a model loads it too, unless it says autoload=false.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120

from fakes.server.flags import LLAMA_FLAGS, help_text, refuse
from fakes.server.wire import JSON, Reply, error_reply, json_reply, read_requests, send

TYPE_CHECKING = False  # importing typing would cost more time than all the rest
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from fakes.server.wire import Request

ROUTER_FLAGS = [
    ("--models-dir", "PATH", "LLAMA_ARG_MODELS_DIR", "directory containing models for the router server"),
    ("--models-preset", "PATH", "LLAMA_ARG_MODELS_PRESET", "path to INI file containing model presets"),
    ("--models-max", "N", "LLAMA_ARG_MODELS_MAX", "maximum number of models to load simultaneously (default: 4)"),
    ("--models-autoload --no-models-autoload", "", "LLAMA_ARG_MODELS_AUTOLOAD", "whether to automatically load models"),
]
PRESET_ONLY = ("load-on-startup", "stop-timeout")
SERVER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fake_server.py")  # noqa: PTH100, PTH118, PTH120
LOCK = threading.RLock()


def log(text: str) -> None:
    sys.stderr.write(f"0.00.000.000 I srv  {text}\n")


class Model:
    def __init__(self, name: str, keys: dict[str, str], inherited: list[str]) -> None:
        self.name, self.keys, self.inherited = name, keys, inherited
        self.process: subprocess.Popen[str] | None = None
        self.loaded, self.failed, self.port, self.used = False, False, 0, 0.0

    @property
    def running(self) -> bool:
        return self.process is not None

    def argv(self) -> list[str]:
        flags = [*self.inherited, "--host", "127.0.0.1", "--port", str(self.port), "--alias", self.name]
        for key, value in self.keys.items():
            if key not in PRESET_ONLY:
                flags += [f"--{key}"] if value == "true" else [f"--{key}", value]
        return [sys.executable, "-I", "-S", SERVER, *flags]

    def load(self) -> None:
        with LOCK, socket.socket() as free:
            if self.process:
                return
            free.bind(("127.0.0.1", 0))
            self.port, self.failed, self.loaded, self.used = free.getsockname()[1], False, False, time.monotonic()
            log(f"load: spawning server instance with name={self.name} on port {self.port}")
            self.process = subprocess.Popen(
                self.argv(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
        threading.Thread(target=self.watch, args=(self.process,), daemon=True).start()

    def watch(self, process: subprocess.Popen[str]) -> None:
        for line in process.stderr or ():
            sys.stderr.write(f"[{self.port:5}] {line}")
            if "model loaded" in line:
                self.loaded = True
        code = process.wait()
        with LOCK:
            self.process, self.loaded, self.failed = None, False, code != 0
        log(f"run: instance name={self.name} exited with status {int(code != 0)}")

    def stop(self) -> None:
        if process := self.process:
            process.terminate()
            while self.process is process:
                time.sleep(0.002)

    def status(self) -> dict[str, Any]:
        if self.failed:
            return {"value": "unloaded", "args": self.argv(), "exit_code": 1, "failed": True}
        value = "unloaded" if not self.running else "loaded" if self.loaded else "loading"
        if value == "loaded" and json.loads(self.ask("GET", "/props")[1]).get("is_sleeping"):
            value = "sleeping"
        return {"value": value, "args": self.argv()}

    def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        key = {"authorization": f"Bearer {os.environ['LLAMA_API_KEY']}"} if "LLAMA_API_KEY" in os.environ else {}
        client = http.client.HTTPConnection("127.0.0.1", self.port)
        try:
            client.request(method, path, body, key)
            answer = client.getresponse()
            return answer.status, answer.read()
        except OSError:
            return 500, b'{"error":{"code":500,"message":"http client error","type":"server_error"}}'
        finally:
            client.close()


class Router:
    def __init__(self, options: dict[str, str]) -> None:
        self.options = options
        self.autoload, self.most = "--no-models-autoload" not in options, int(options.get("--models-max", 4))
        inherited = ["--metrics"] * ("--metrics" in options)
        if idle := options.get("--sleep-idle-seconds"):
            inherited += ["--sleep-idle-seconds", idle]
        self.models = {name: Model(name, keys, inherited) for name, keys in sources(options).items()}

    def start(self) -> None:
        first = [model for model in self.models.values() if model.keys.get("load-on-startup") == "true"]
        if len(first) > self.most:
            refuse(f"number of models to load on startup ({len(first)}) exceeds models_max ({self.most})")
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.options.get("--host", "127.0.0.1"), int(self.options.get("--port", 8080))))
        listener.listen(128)
        log(f"llama_server: listening on http://127.0.0.1:{listener.getsockname()[1]}")
        for model in first:
            model.load()
        while True:
            threading.Thread(target=self.serve, args=(listener.accept()[0],), daemon=True).start()

    def load(self, model: Model) -> None:
        running = [other for other in self.models.values() if other.running and other is not model]
        if 0 < self.most <= len(running):
            oldest = min(running, key=lambda other: other.used)
            log(f"unload_lru: models_max limit reached, removing LRU name={oldest.name}")
            oldest.stop()
        model.load()

    def serve(self, client: socket.socket) -> None:
        with client:
            try:
                for request in read_requests(client):
                    send(client, self.route(request), False)
                    break
            except (OSError, ValueError):
                pass  # the client went away or talks no HTTP

    def route(self, request: Request) -> Reply:
        if request.path == "/health":
            return json_reply({"status": "ok"})
        key = os.environ.get("LLAMA_API_KEY")
        if key and request.headers.get("authorization") != f"Bearer {key}":
            return error_reply(401, "authentication_error", "Invalid API Key")
        if request.path in ("/models", "/v1/models"):
            return json_reply({"data": [self.entry(model) for model in self.models.values()], "object": "list"})
        return self.route_to_model(request)

    def route_to_model(self, request: Request) -> Reply:
        query = dict(pair.split("=") for pair in request.query.split("&") if pair)
        body = json.loads(request.body) if request.body else {}
        name = query.get("model", "") if request.method == "GET" else body.get("model", "")
        if not name:
            return error_reply(400, "invalid_request_error", "model name is missing from the request")
        model = self.models.get(name)
        if model is None:
            return error_reply(400, "invalid_request_error", f"model '{name}' not found")
        if request.path in ("/models/load", "/models/unload"):
            if model.running == (request.path == "/models/load"):
                word = "already" if model.running else "not"
                return error_reply(400, "invalid_request_error", f"model is {word} running")
            if model.running:
                model.stop()
            else:
                self.load(model)
            return json_reply({"success": True})
        return self.proxy(model, request, autoload=query.get("autoload", str(self.autoload).lower()) == "true")

    def proxy(self, model: Model, request: Request, *, autoload: bool) -> Reply:
        if not model.running and not autoload:
            return error_reply(400, "invalid_request_error", "model is not loaded")
        if not model.running:
            self.load(model)
        while model.running and not model.loaded:
            time.sleep(0.002)
        if model.failed:
            return error_reply(500, "server_error", f"model name={model.name} failed to load")
        if request.method == "POST":
            model.used = time.monotonic()
        status, data = model.ask(request.method, request.path, request.body)
        return Reply(status, [data], JSON)

    def entry(self, model: Model) -> dict[str, Any]:
        card = {"id": model.name, "aliases": [], "tags": [], "object": "model", "owned_by": "llamacpp"}
        return {**card, "created": 0, "status": model.status(), "source": "preset", "can_remove": False}


def sources(options: dict[str, str]) -> dict[str, dict[str, str]]:
    """Name -> keys, of the preset and of the folder."""
    found: dict[str, dict[str, str]] = {}
    for entry in sorted(os.listdir(options["--models-dir"])) if "--models-dir" in options else ():
        if entry.endswith(".gguf"):
            found[entry.removesuffix(".gguf")] = {"model": os.path.join(options["--models-dir"], entry)}  # noqa: PTH118
    if "--models-preset" in options:
        section = ""
        with open(options["--models-preset"], encoding="utf-8") as file:  # noqa: PTH123
            for line in map(str.strip, file):
                if line.startswith("["):
                    section = line[1:-1].strip()
                    found.setdefault(section, {})
                elif section and line and line[0] not in ";#":
                    name, _, value = line.partition("=")
                    found[section][name.strip()] = value.strip()
    return found


def parse(argv: list[str]) -> dict[str, str]:
    rows = {name: hint for names, hint, *_ in (*LLAMA_FLAGS, *ROUTER_FLAGS) for name in names.split()}
    options: dict[str, str] = {}
    words = iter(argv)
    for flag in words:
        if flag not in rows:
            refuse(f"error: invalid argument: {flag}")
        options[flag] = next(words) if rows[flag] else ""
    if options.keys() & {"-h", "--help"}:
        sys.stdout.write(help_text([*LLAMA_FLAGS, *ROUTER_FLAGS]))
        sys.exit(0)
    return options


def main() -> NoReturn:
    router = Router(parse(sys.argv[1:]))

    def stop(*_: object) -> None:
        for model in router.models.values():
            if process := model.process:
                process.terminate()
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    router.start()
    raise AssertionError("it serves for ever")


if __name__ == "__main__":
    main()
