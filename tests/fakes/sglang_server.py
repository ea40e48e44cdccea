"""A small SGLang that misbehaves as the real one does (0.5.23, seen): for tests of its Steps, its stop and its health.

It listens before its warmup is done, its health generates unless told not to, a generation without GPU memory ends it,
so does a second resume and a release of an engine that is not idle; a TERM that also ends its scheduler looks like a
crash to it. It takes real SGLang's flags, reads its keys from `--config`, and prints them in its log, as SGLang does.

    python sglang_server.py --port 0 --config keys.yaml [--warmup-s 0.1] [--generation-s 0.01] [--busy]
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
from typing import Any

OPEN = ("/health", "/ready", "/metrics")  # by prefix
ADMIN = (
    *("/flush_cache", "/pause_generation", "/continue_generation", "/release_memory_occupation"),
    *("/resume_memory_occupation", "/hicache/storage-backend", "/list_external_corpora"),
)
GENERATING = ("/v1/chat/completions", "/v1/completions", "/invocations", "/generate")
TAGS = ("kv_cache", "weights", "cuda_graph")


def flag(name: str, default: str = "") -> str:
    """What follows a flag."""
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def log(text: str) -> None:
    sys.stderr.write(f"{time.strftime('[%Y-%m-%d %H:%M:%S]')} {text}\n")
    sys.stderr.flush()


class Engine:
    """What the processes behind the HTTP server know."""

    def __init__(self) -> None:
        self.keys = dict.fromkeys(("api-key", "admin-api-key"), "")
        if path := flag("--config"):
            with open(path, encoding="utf-8") as file:  # noqa: PTH123  pathlib is slow to import
                for line in file:
                    name, _, value = line.partition(":")
                    if name in self.keys:
                        self.keys[name] = json.loads(value)
        self.lock = threading.Condition()
        self.up = self.exiting = self.paused = False
        self.running = int("--busy" in sys.argv)  # a request that never ends
        self.generated = 0
        self.released: set[str] = set()
        self.garbage = False
        self.cache: set[str] = set()
        # They end with their standard input, as the real ones end with their parent, and by TERM.
        self.workers = [
            subprocess.Popen([title, "-c", "read _"], executable="/bin/sh", stdin=subprocess.PIPE)
            for title in ("sglang::scheduler", "sglang::detokenizer")
        ]
        for worker in self.workers:
            threading.Thread(target=self.watch, args=(worker,), daemon=True).start()

    def watch(self, worker: subprocess.Popen[bytes]) -> None:
        """What SGLang makes of a child that ends: a crash, unless it has told it to end."""
        worker.wait()
        with self.lock:
            if self.exiting:
                return
        log("SIGQUIT received. signum=None, frame=None. It usually means one child failed.")
        if os.environ.get("SGLANG_PYSPY_DUMP_BEFORE_CRASH") != "0":
            time.sleep(60)  # the real one takes 5 s, or 65 s when its scheduler lives
        time.sleep(float(flag("--diagnostics-s", "0.3")))
        log(f"kill_process_tree called: parent_pid={os.getpid()}, include_parent=True, pid={os.getpid()}")
        os.kill(os.getpid(), signal.SIGKILL)

    def die(self, error: str) -> None:
        """The scheduler raises."""
        log(f"Scheduler hit an exception: Traceback (most recent call last):\n{error}\n")
        self.workers[0].kill()
        time.sleep(60)  # the request that did it gets no answer

    def generate(self, prompt: str, salt: str) -> tuple[str, float]:
        """A text and the log-probability of its tokens: a prompt from the cache rounds otherwise."""
        with self.lock:
            self.lock.wait_for(lambda: not self.paused)
            self.running += 1
        if self.released:
            self.die("ValueError: Pointer argument (at 0) cannot be accessed from Triton (cpu tensor?)")
        time.sleep(float(flag("--generation-s", "0.01")))
        with self.lock:
            self.running -= 1
            self.generated += 1
            cached = f"{salt}\0{prompt}" in self.cache
            self.cache.add(f"{salt}\0{prompt}")
            return ("!!!! ???? ####" if self.garbage else "The sea is wide"), -1.1 if cached else -1.0

    def release(self) -> None:
        with self.lock:
            if self.running:
                self.die("AssertionError: release_memory_occupation should be called only when server is idle.")
            self.released |= set(TAGS)
            self.cache.clear()
            self.garbage |= "--enable-weights-cpu-backup" not in sys.argv

    def resume(self) -> None:
        with self.lock:
            if not self.released:
                self.die("    self.offload_tags.remove(tag)\nKeyError: 'kv_cache'")
            self.released.clear()

    def pause(self, paused: bool) -> None:
        with self.lock:
            self.paused = paused
            self.lock.notify_all()

    def flush(self, limit_s: float) -> bool:
        """Only an idle engine does."""
        deadline = time.monotonic() + limit_s
        while self.running:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.005)
        self.cache.clear()
        return True


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    engine: Engine

    def reply(self, status: int, body: object = None) -> None:
        data = b"" if body is None else body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class names it so
        log(f"INFO:     {self.client_address[0]}:{self.client_address[1]} - {format % args}")

    def allowed(self, path: str) -> bool:
        keys, sent = self.engine.keys, self.headers.get("Authorization", "").removeprefix("Bearer ")
        if path.startswith(OPEN):
            return True
        wanted = keys["admin-api-key"] if path in ADMIN and keys["admin-api-key"] else keys["api-key"]
        return not wanted or sent == wanted

    def do_GET(self) -> None:
        self.answer(None)

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        self.answer(json.loads(data) if data else None)

    def answer(self, body: Any) -> None:
        engine, (path, _, query) = self.engine, self.path.partition("?")
        if not self.allowed(path):
            self.reply(401, {"error": "Unauthorized"})
        elif path in ("/health", "/health_generate"):
            self.health(path)
        elif path == "/ready":
            self.reply(200 if engine.up and not engine.exiting and not engine.paused else 503)
        elif path == "/v1/models":
            self.reply(200, {"data": [{"id": flag("--served-model-name", "tiny"), "owned_by": "sglang"}]})
        elif path == "/v1/loads":
            self.reply(200, {"loads": [{"num_running_reqs": engine.running, "num_waiting_reqs": 0}]})
        elif path == "/metrics" and "--enable-metrics" in sys.argv:
            self.reply(200, f'sglang:generation_tokens_total{{model_name="tiny"}} {engine.generated}.0\n')
        elif path == "/server_info":
            self.reply(200, {"api_key": engine.keys["api-key"], "admin_api_key": engine.keys["admin-api-key"]})
        elif path in GENERATING and self.command == "POST":
            self.generate(body or {})
        elif path in ADMIN:
            self.administrate(path, query, body)
        else:
            self.reply(404, {"detail": "Not Found"})

    def health(self, path: str) -> None:
        engine = self.engine
        if engine.exiting or not engine.up:
            self.reply(503)
            return
        silent = os.environ.get("SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION") == "0" and path == "/health"
        if not silent and os.environ.get("SGLANG_DIAG_BYPASS_HEALTH_GENERATE") != "1":
            engine.generate("", "")
        self.reply(200)

    def generate(self, body: dict[str, Any]) -> None:
        text, logprob = self.engine.generate(json.dumps(body.get("messages", "")), body.get("cache_salt", ""))
        rows = [{"token": word, "logprob": logprob, "bytes": list(word.encode())} for word in text.split(" ")]
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "length"}
        choice["logprobs"] = {"content": rows} if body.get("logprobs") else None
        self.reply(200, {"model": "tiny", "choices": [choice], "usage": {"completion_tokens": len(rows)}})

    def administrate(self, path: str, query: str, body: Any) -> None:
        engine = self.engine
        if path == "/flush_cache":
            done = engine.flush(float(query.removeprefix("timeout=") or 0))
            self.reply(200 if done else 400, "Cache flushed.\n" if done else "Flush cache failed.\n")
        elif path.endswith("memory_occupation") and body is None:
            self.reply(400, {"object": "error", "message": "1 validation error: Field required", "code": 400})
        else:
            if path == "/release_memory_occupation":
                engine.release()
            elif path == "/resume_memory_occupation":
                engine.resume()
            elif path in ("/pause_generation", "/continue_generation"):
                engine.pause(path == "/pause_generation")
            self.reply(200, "null")


def main() -> None:
    engine = Engine()
    log(f"server_args={{'api_key': {engine.keys['api-key']!r}, 'admin_api_key': {engine.keys['admin-api-key']!r}}}")
    Handler.engine = engine
    server = ThreadingHTTPServer((flag("--host", "127.0.0.1"), int(flag("--port", "30000"))), Handler)
    server.daemon_threads = True
    stopped = threading.Event()
    # The handler only notes it: a poll finds the note, after up to 5 s in the real one.
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    time.sleep(float(flag("--warmup-s", "0.05")))
    engine.up = True
    log("The server is fired up and ready to roll!")
    while not stopped.wait(0.05):  # a signal's handler runs between two waits
        pass
    log("SIGTERM received. signum=None frame=None. Draining requests and shutting down...")
    time.sleep(0.1)  # the poll: a scheduler that got the signal too has ended by now
    if any(worker.poll() is not None for worker in engine.workers):
        threading.Event().wait(60)  # a crash, and its diagnostics are under way
    while engine.running:
        time.sleep(0.01)
    with engine.lock:
        engine.exiting = True
    for worker in engine.workers:
        worker.communicate()


if __name__ == "__main__":
    main()
