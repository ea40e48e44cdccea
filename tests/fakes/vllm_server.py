"""A fake of vLLM's API server, which misbehaves as the real one (0.32.0) does.

    python -S -P tests/fakes/vllm_server.py serve MODEL --host 127.0.0.1 --port 8000 --served-model-name tiny

The port refuses connections until the engine is there. `/health` says 200 while the engine sleeps, and 503 once a
process of the engine is dead; the server then ends with exit code 0. Its own key guards `/v1` and `/inference` only:
`/invocations` answers everybody, and so do the development routes (`VLLM_SERVER_DEV_MODE=1`). A request to a sleeping
engine waits until it is awake. A wake in another order than weights, reload, KV cache, prefix cache answers garbage.
A prompt that was seen before has other log-probabilities in their last bits, unless `cache_salt` tells them apart.
`--middleware` classes are imported and asked as ASGI applications; `serve --help=all` prints the captured help.

Faults are words of the variable FAKE_VLLM:

  load=S         loads for S seconds                     die-loading       a worker runs out of memory in the load
  linger=S       S seconds from a dead engine to the end (0.3)             no-middleware     --middleware is ignored
  no-sleep       /sleep fails                            no-wake           /wake_up changes nothing, and says 200
  no-reload      /collective_rpc does nothing, and says 200                hang              completions never answer
  no-invocations the route is not there
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HEADS = 4  # of the model's attention; a tensor parallel size must divide them
HELP = Path(__file__).resolve().parents[1] / "testdata" / "vllm" / "help.txt"
TITLES = ("VLLM::EngineCore", "VLLM::Worker")
FAULTS = dict((*word.partition("="),)[::2] for word in os.environ.get("FAKE_VLLM", "").split())
TAGS = {"weights", "kv_cache"}
GARBAGE = "!!!!!!!!"
NOISE = "\n".join(["nanobind: leaked 4 instances!", *(f' - leaked function "{n}"' for n in range(60))])


def say(text: str) -> None:
    """Lines as they are."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def log(text: str, level: str = "INFO", process: str = "APIServer") -> None:
    """A line as vLLM's logger writes it."""
    say(f"({process} pid={os.getpid()}) {level} 11-21 14:42:37 [fake.py:1] {text}")


class Engine:
    """The state behind the routes."""

    def __init__(self, *, sleeps: bool) -> None:
        self.sleeps = sleeps
        self.changed = threading.Condition()
        self.asleep: set[str] = set()
        self.level = 0
        self.weights = True  # whether what stands in memory are the model's weights
        self.stale_prefixes = False
        self.prompts: set[str] = set()
        self.running = self.waiting = self.tokens = 0
        self.dead = False

    def sleep(self, level: int) -> None:
        """Level 2 drops the weights, too."""
        with self.changed:
            self.asleep, self.level = set(TAGS), level
            if level == 2:
                self.weights, self.stale_prefixes = False, True

    def wake(self, tags: list[str]) -> bool:
        """A tag that is not asleep is ignored, without an error. Returns whether all is awake."""
        with self.changed:
            if "no-wake" not in FAULTS and set(tags) <= self.asleep:
                self.asleep -= set(tags) or TAGS
                self.changed.notify_all()
            return not self.asleep

    def reload(self) -> bool:
        """Read the weights again: there is room for it only before the KV cache has taken the rest."""
        with self.changed:
            if self.asleep != {"kv_cache"}:
                return not self.asleep and self.weights
            self.weights = self.weights or "no-reload" not in FAULTS
            return True

    def generate(self, body: dict[str, Any]) -> tuple[str, float]:
        """The text of an answer, and the log-probability of its tokens."""
        with self.changed:
            self.waiting += 1
            self.changed.wait_for(lambda: not self.asleep and "hang" not in FAULTS)
            self.waiting -= 1
            self.running += 1
            prompt = json.dumps([body.get("messages"), body.get("prompt"), body.get("cache_salt")])
            cached, good = prompt in self.prompts, self.weights and not self.stale_prefixes
            self.prompts.add(prompt)
            self.tokens += 1
            self.running -= 1
        return ("The sea sleeps." if good else GARBAGE), -0.25 - (0.001 if cached else 0.0)


class Api:
    """The routes, behind vLLM's own key."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine, self.name = engine, name
        self.key = os.environ.get("VLLM_API_KEY")
        self.dev = os.environ.get("VLLM_SERVER_DEV_MODE") == "1"

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, str]:
        """Status and body."""
        path = unquote(urlsplit(target).path)
        guarded = path.startswith(("/v1", "/v2", "/inference", "/cohere"))
        if guarded and self.key and headers.get("authorization") != f"Bearer {self.key}":
            return 401, '{"error":"Unauthorized"}'
        allowed = self.routes().get(path)
        if allowed != method:
            return (405, '{"detail":"Method Not Allowed"}') if allowed else (404, '{"detail":"Not Found"}')
        if path in ("/health", "/ping"):
            return (503 if self.engine.dead else 200), ""
        if method == "GET":
            return self.tell(path)
        query, asked = parse_qs(urlsplit(target).query), json.loads(body or b"{}")
        return self.administrate(path, query, asked) or self.generate(path, asked)

    def routes(self) -> dict[str, str]:
        """Path -> method."""
        get = ["/health", "/ping", "/metrics", "/version", "/load", "/v1/models"]
        post = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/tokenize"]
        post += [] if "no-invocations" in FAULTS else ["/invocations"]
        if self.dev:
            get.append("/is_sleeping")
            post += ["/sleep", "/wake_up", "/collective_rpc", "/reset_prefix_cache"]
        return {**dict.fromkeys(get, "GET"), **dict.fromkeys(post, "POST")}

    def tell(self, path: str) -> tuple[int, str]:
        """What the GET routes say."""
        engine = self.engine
        if path == "/v1/models":
            return 200, json.dumps({"object": "list", "data": [{"id": self.name, "owned_by": "vllm"}]})
        if path == "/is_sleeping":
            return 200, json.dumps({"is_sleeping": bool(engine.asleep)})
        if path == "/metrics":
            states = {
                "awake": not engine.asleep,
                "weights_offloaded": engine.level == 1,
                "discard_all": engine.level == 2,
            }
            labels = f'engine="0",model_name="{self.name}"'
            rows = [f'vllm:engine_sleep_state{{{labels},sleep_state="{n}"}} {v:.1f}' for n, v in states.items()]
            counts = {"num_requests_running": engine.running, "num_requests_waiting": engine.waiting}
            counts |= {"prompt_tokens_total": engine.tokens, "generation_tokens_total": engine.tokens}
            return 200, "\n".join([*rows, *(f"vllm:{n}{{{labels}}} {v:.1f}" for n, v in counts.items()), ""])
        return 200, json.dumps({"version": "0.32.0"} if path == "/version" else {"server_load": 0})

    def administrate(self, path: str, query: dict[str, list[str]], asked: dict[str, Any]) -> tuple[int, str] | None:
        """The development routes; None: it is none of them."""
        engine = self.engine
        if path == "/sleep":
            if "no-sleep" in FAULTS or not engine.sleeps:
                return 500, '{"error":{"message":"Sleep mode is not enabled"}}'
            engine.sleep(int(query.get("level", ["1"])[0]))  # a level in the body is ignored
            return 200, json.dumps({"status": "sleeping", "level": engine.level})
        if path == "/wake_up":
            tags = query.get("tags", [])
            return 200, json.dumps({"status": "awake" if engine.wake(tags) else "sleeping", "tags": tags or None})
        if path == "/collective_rpc":
            done = asked.get("method") == "reload_weights" and engine.reload()
            return (200, '{"results":[null]}') if done else (500, '{"error":{"message":"CUDA out of memory"}}')
        if path == "/reset_prefix_cache":
            engine.stale_prefixes = bool(engine.asleep)
            return 200, json.dumps({"success": True})
        return None

    def generate(self, path: str, asked: dict[str, Any]) -> tuple[int, str]:
        """The generating routes, and `/tokenize`."""
        if path == "/tokenize":
            return 200, json.dumps({"count": 1, "tokens": [42]})
        if not {"messages", "prompt", "input"} & set(asked):
            return 400, json.dumps({"error": {"message": "1 validation error", "type": "Bad Request", "code": 400}})
        if self.engine.dead:
            return 500, json.dumps({"error": {"message": "EngineCore encountered an issue."}})
        text, logprob = self.engine.generate(asked)
        row = {"token": text, "logprob": logprob, "bytes": list(text.encode())}
        if path == "/v1/completions":
            choice: dict[str, Any] = {"text": text, "logprobs": {"tokens": [text], "token_logprobs": [logprob]}}
        else:
            choice = {"message": {"role": "assistant", "content": text}, "logprobs": {"content": [row]}}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        choice |= {"index": 0, "finish_reason": "stop"}
        return 200, json.dumps({"id": "chatcmpl-1", "model": self.name, "choices": [choice], "usage": usage})


def drive(coroutine: Any) -> None:
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise RuntimeError("a middleware that waits is more than the fake can run")


def through(api: Api, classes: list[Any], method: str, target: str, pairs: list[tuple[str, str]], body: bytes) -> Any:
    """The answer of the application behind its middlewares: messages of ASGI, put together."""
    status, text = 0, b""

    async def application(*_: object) -> None:
        nonlocal status, text
        status, said = api.answer(method, target, {name.lower(): value for name, value in pairs}, body)
        text = said.encode()

    async def send(message: dict[str, Any]) -> None:
        nonlocal status, text
        status = message.get("status", status)
        text += message.get("body", b"")

    app: Any = application
    for middleware in classes:  # the last one comes first, as FastAPI has it
        app = middleware(app)
    path, _, query = target.partition("?")
    headers = [(name.lower().encode(), value.encode()) for name, value in pairs]
    scope = {
        "type": "http",
        "method": method,
        "path": unquote(path),
        "headers": headers,
        "query_string": query.encode(),
    }
    drive(app(scope, None, send))
    return status, text


def handler(api: Api, classes: list[Any]) -> type[BaseHTTPRequestHandler]:
    """The requests of one connection."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet: a second one would wait 40 ms for the first to be acknowledged

        def respond(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            status, text = through(api, classes, self.command, self.path, list(self.headers.items()), body)
            self.send_response(status)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_OPTIONS = respond  # noqa: N815

        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:  # noqa: ARG002
            say(f'INFO:     {self.client_address[0]}:1 - "{self.requestline}" {code} OK')

    return Handler


class Server(ThreadingHTTPServer):
    """A thread a connection; none of them keeps the process alive."""

    daemon_threads = True
    request_queue_size = 128


def value(argv: list[str], name: str, default: str) -> str:
    """What follows an argument."""
    return argv[argv.index(name) + 1] if name in argv else default


def crash(process: str, reason: str, code: int) -> None:
    """End as a crash does: the cause, then noise that pushes it out of sight."""
    log(f"{process} failed to start.", "ERROR", process)
    log("Traceback (most recent call last):", "ERROR", process)
    for number in range(30):
        log(f'  File "vllm/v1/executor.py", line {number}, in run', "ERROR", process)
    log(reason, "ERROR", process)
    say(f"RuntimeError: Engine core initialization failed. Failed core proc(s): {{}}\n{NOISE}")
    os._exit(code)


def watch(engine: Engine, workers: list[subprocess.Popen[bytes]]) -> None:
    """Notice the end of a process of the engine, as the real server does, and end with code 0 some time after."""
    while all(worker.poll() is None for worker in workers):
        time.sleep(0.01)
    engine.dead = True
    log("AsyncLLM output_handler failed.", "ERROR")
    log("vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.", "ERROR")
    time.sleep(float(FAULTS.get("linger") or 0.3))
    for worker in workers:
        worker.kill()
    say(f"INFO:     Shutting down\n{NOISE}")
    os._exit(0)


def start(title: str) -> subprocess.Popen[bytes]:
    """A process with that title, which ends when its server does."""
    return subprocess.Popen((title, "-c", "read end"), executable="/bin/sh", stdin=subprocess.PIPE)


def main(argv: list[str]) -> int:
    """Serve, or print the help."""
    if argv[1:] == ["--help=all"]:
        sys.stdout.write(HELP.read_text(encoding="utf-8"))
        return 0
    log(f"non-default args: {argv[1:]}")
    size = int(value(argv, "--tensor-parallel-size", "1"))
    if HEADS % size:
        words = f"Total number of attention heads ({HEADS}) must be divisible by tensor parallel size ({size})."
        crash("APIServer", f"pydantic_core.ValidationError: {words}", 1)
    workers = [start(title) for title in TITLES]
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    time.sleep(float(FAULTS.get("load") or 0))
    if "die-loading" in FAULTS:
        crash("Worker_TP0", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", 1)
    engine = Engine(sleeps="--enable-sleep-mode" in argv)
    names = [argv[n + 1] for n, word in enumerate(argv) if word == "--middleware" and "no-middleware" not in FAULTS]
    classes = [getattr(import_module(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in names]
    api = Api(engine, value(argv, "--served-model-name", argv[1]))
    host, port = value(argv, "--host", "127.0.0.1"), int(value(argv, "--port", "8000"))
    server = Server((host, port), handler(api, classes))
    log(f"Starting vLLM server on http://{host}:{port}")
    say("INFO:     Application startup complete.")
    threading.Thread(target=watch, args=(engine, workers), daemon=True).start()
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
