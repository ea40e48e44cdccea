"""What the real vLLM says, captured into tests/testdata/vllm; the environment is the one of the recipe.

    PYTHONPATH=tests python -m tools.vllm_transcripts

starts it five times: once to ask it everything, and once for each way to fail. Development routes are open, and no
guard stands before the server, so that the files hold what vLLM itself lets strangers do.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from engines.environment import BUILD, Environment, build, clean
from engines.vllm.recipe import HERE, RECIPE
from supervisor.linux import files, processes
from support import free_port
from tools.transcripts import TESTDATA, Exchange

FOLDER: Final = TESTDATA / "vllm"
KEY: Final = "sk-made-up-for-tests"
LIMIT_S: Final = 400.0
KEPT: Final = re.compile(
    r"vllm:(?:num_requests|engine_sleep|prompt_tokens|generation_tokens|kv_cache_usage|request_success|"
    r"iteration_tokens_total|sleep_mode)"
)

_HI: Final = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
_QUESTION: Final = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_tokens": 8,
    "temperature": 0,
    "seed": 1,
    "logprobs": True,
    "top_logprobs": 1,
}
_PROMPT: Final = {"model": "tiny", "prompt": "The sea is", "max_tokens": 8, "temperature": 0}
_IDS: Final = {"model": "tiny", "token_ids": [1, 2, 3], "sampling_params": {"max_tokens": 2}}
Asks = Mapping[str, tuple[str, Mapping[str, Any] | None]]

STRANGER: Final[Asks] = {
    "models-refused": ("/v1/models", None),
    "is-sleeping": ("/is_sleeping", None),
    "load": ("/load", None),
    "invocations-without-key": ("/invocations", _HI),
    "tokenize-without-key": ("/tokenize", {"model": "tiny", "prompt": "Hi"}),
    "chat-without-key": ("/v1/chat/completions", _HI),
}
FRESH: Final[Asks] = {
    "health": ("/health", None),
    "models": ("/v1/models", None),
    "metrics-fresh": ("/metrics", None),
    "version": ("/version", None),
}
CLIENT: Final[Asks] = {
    "chat": ("/v1/chat/completions", _QUESTION),
    "completion": ("/v1/completions", _PROMPT),
    "responses": ("/v1/responses", {"model": "tiny", "input": "Say hello.", "max_output_tokens": 2, "temperature": 0}),
    "messages": ("/v1/messages", {**_HI, "max_tokens": 2}),
    "generate-disabled": ("/inference/v1/generate", _IDS),
    "embeddings-absent": ("/v1/embeddings", {"model": "tiny", "input": "Hi"}),
    "chat-refused": ("/v1/chat/completions", {}),
    "chat-no-model": ("/v1/chat/completions", {**_HI, "model": "other"}),
    "completion-too-long": ("/v1/completions", {**_PROMPT, "prompt": "sea " * 3000}),
    "metrics": ("/metrics", None),
}
ASLEEP: Final[Asks] = {
    "sleep": ("/sleep?level=1", {}),
    "is-sleeping-asleep": ("/is_sleeping", None),
    "health-asleep": ("/health", None),
    "metrics-asleep": ("/metrics", None),
    "wake-up": ("/wake_up", {}),
    "reset-prefix-cache": ("/reset_prefix_cache", {}),
    "reload-weights": ("/collective_rpc", {"method": "reload_weights"}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A started vLLM; `client` has no key."""

    process: subprocess.Popen[bytes]
    client: httpx.Client

    def keep(self, name: str, path: str, body: Mapping[str, Any] | None, *, key: bool) -> int:
        """Ask, write the answer down, and return its status."""
        headers = {"Authorization": f"Bearer {KEY}"} if key else {}
        method = "GET" if body is None else "POST"
        answer = self.client.request(method, path, json=body, headers=headers)
        text = answer.text
        if path == "/metrics":
            text = "\n".join(line for line in text.splitlines() if KEPT.search(line))
        kept = Exchange(method=method, path=path, status=answer.status_code, body=text)
        write(FOLDER / f"{name}.txt", kept.text())
        return answer.status_code

    def keep_all(self, asks: Asks, *, key: bool) -> None:
        """Ask one after the other."""
        for name, (path, body) in asks.items():
            self.keep(name, path, body, key=key)

    def title(self, start: str) -> int:
        """The pid of the process whose title begins so."""
        tree = processes.members(self.process.pid)
        return next(pid for pid in tree if " ".join(files.argv(pid)).startswith(start))


def write(path: Path, text: str) -> None:
    """Write a text without the key and without the places of this machine."""
    places = {str(BUILD / RECIPE.name): "/vllm", sys.base_prefix: "/usr", str(Path.home()): "/home/user"}
    for place, name in {KEY: "KEY", **places}.items():
        text = text.replace(place, name)
    text = re.sub(r"mq_connect_ip=\S+", "mq_connect_ip=10.0.0.2", text)
    path.write_text(re.sub(r"(127\.0\.0\.1|localhost):\d+", r"\1:8080", text), encoding="utf-8")


@contextmanager
def started(env: Environment, log_name: str, *arguments: str, model: Path | None = None) -> Iterator[Running]:
    """A vLLM whose log is kept; it is asked to end with the block."""
    port = free_port()
    argv = [env.program("vllm"), "serve", model or env.model, "--host", "127.0.0.1", "--port", port]
    argv += ["--max-model-len", 1024, "--served-model-name", "tiny", "--enforce-eager", *arguments]
    variables = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    variables |= {"VLLM_SERVER_DEV_MODE": "1", "TORCHDYNAMO_DISABLE": "1", "VLLM_API_KEY": KEY}
    with tempfile.TemporaryFile() as log, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        process = subprocess.Popen(
            list(map(str, argv)), env={**clean(os.environ), **variables}, stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield Running(process=process, client=client)
        finally:
            process.terminate()
            process.wait(60)
            log.seek(0)
            write(FOLDER / f"{log_name}.log", log.read().decode(errors="replace"))


def up(run: Running) -> None:
    """Wait until health is green."""
    ends = time.monotonic() + LIMIT_S
    while run.process.poll() is None and time.monotonic() < ends:
        try:
            if run.client.get("/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise RuntimeError(f"not up; exit code {run.process.returncode}")


def capture_answers(env: Environment) -> None:
    """Everything that a living server says, asleep too."""
    with started(env, "engine") as run:
        up(run)
        run.keep_all(FRESH, key=True)
        run.keep_all(STRANGER, key=False)
        run.keep_all(CLIENT, key=True)
        long = {**_PROMPT, "max_tokens": 900, "ignore_eos": True}
        asking = threading.Thread(target=run.client.post, args=("/v1/completions",), kwargs={"json": long} | _bearer())
        asking.start()
        while 'vllm:num_requests_running{engine="0",model_name="tiny"} 1.0' not in run.client.get("/metrics").text:
            assert asking.is_alive(), "the request was never counted"
        run.keep("metrics-busy", "/metrics", None, key=True)
        asking.join()
        run.keep_all(ASLEEP, key=False)


def capture_failures(env: Environment) -> None:
    """A worker that raises, a killed engine, and two command lines that cannot start."""
    with started(env, "engine-core-killed") as run:
        up(run)
        os.kill(run.title("VLLM::EngineCore"), signal.SIGKILL)
        while run.keep("health-dead", "/health", None, key=True) == 200:
            time.sleep(0.01)
        run.keep("chat-dead", "/v1/chat/completions", _HI, key=True)
        run.process.wait(60)
    with tempfile.TemporaryDirectory() as folder:
        env.run(env.python, HERE / "model.py", folder, "16")
        with started(env, "worker-error", model=Path(folder)) as run:
            up(run)
            run.client.post("/v1/chat/completions", json=_HI, **_bearer())
            run.process.wait(60)
    for name, arguments in {
        "parallel-size": ("--tensor-parallel-size", "3"),
        "unknown-flag": ("--no-such-flag", "3"),
    }.items():
        with started(env, name, *arguments) as run:
            run.process.wait(LIMIT_S)


def _bearer() -> dict[str, Any]:
    return {"headers": {"Authorization": f"Bearer {KEY}"}}


def main() -> None:
    """Capture everything."""
    env = build(RECIPE, print)
    (FOLDER / "help.txt").write_text(env.output(env.program("vllm"), "serve", "--help=all"), encoding="utf-8")
    capture_answers(env)
    capture_failures(env)


if __name__ == "__main__":
    main()
