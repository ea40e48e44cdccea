"""What the image server says before a real pipeline of diffusers, captured into tests/testdata/images.

    PYTHONPATH=tests python -m tools.image_transcripts

takes the environment and the pipeline of the recipe (tests/engines/images), and starts the server three times: to ask
it everything, with too little memory for an image, and without a model.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx

from engines.environment import Environment, build, clean
from engines.images.recipe import RECIPE
from supervisor.engines.images import Images
from supervisor.redact import Secret
from support import free_port
from tools.transcripts import TESTDATA, Exchange

FOLDER: Final = TESTDATA / "images"
KEY: Final = "sk-made-up-for-tests"
ROUTE: Final = "/v1/images/generations"
LIMIT_S: Final = 300.0
SPARE: Final = 64 << 20  # bytes of address space that are left for a large picture
_SMALL: Final[dict[str, Any]] = {"prompt": "a red square", "size": "32x32", "seed": 1}


def main() -> None:
    """Capture everything."""
    env = build(RECIPE, print)
    FOLDER.mkdir(exist_ok=True)
    settings = RECIPE.engine(env, env.model, Secret(KEY))
    assert isinstance(settings, Images)
    with _running(env, settings, "engine") as client:
        _until_up(client)
        _keep("models-refused", client.get("/v1/models"))
        client.headers["Authorization"] = f"Bearer {KEY}"
        _keep("metrics-fresh", client.get("/metrics"))
        _keep("models", client.get("/v1/models"))
        _keep("image", client.post(ROUTE, json=_SMALL))
        _keep("size-refused", client.post(ROUTE, json={**_SMALL, "size": "33x32"}))
        _keep("metrics", client.get("/metrics"))
        _busy(client)
    with _running(env, settings, "out-of-memory", spare=SPARE) as client:
        client.headers["Authorization"] = f"Bearer {KEY}"
        _keep("out-of-memory", client.post(ROUTE, json={**_SMALL, "size": "2048x2048"}))
        _keep("image-after", client.post(ROUTE, json=_SMALL), only_status=True)
    with _running(env, replace(settings, model=env.folder / "missing"), "no-model"):
        pass


@contextmanager
def _running(env: Environment, settings: Images, log: str, *, spare: int = 0) -> Iterator[httpx.Client]:
    profile, port = settings.profile(), free_port()
    argv = [word.replace("{host}", profile.host).replace("{port}", str(port)) for word in profile.command]
    variables = clean(os.environ) | {name: str(value) for name, value in profile.env.items()} | {"IMAGES_API_KEY": KEY}
    with tempfile.TemporaryFile() as out, subprocess.Popen(
        argv, env=variables, stdout=out, stderr=out
    ) as process:  # fmt: skip
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=LIMIT_S) as client:
                if spare:
                    _until_up(client, keep=False)
                    used = int(Path(f"/proc/{process.pid}/statm").read_text().split()[0]) * resource.getpagesize()
                    resource.prlimit(process.pid, resource.RLIMIT_AS, (used + spare, used + spare))
                yield client
            if log == "no-model":
                assert process.wait(LIMIT_S) == 1
            process.terminate()
            assert process.wait(60) in (0, 1)
        finally:
            process.kill()
        out.seek(0)
        (FOLDER / f"{log}.log").write_text(_clean(out.read().decode(), env), encoding="utf-8")


def _until_up(client: httpx.Client, *, keep: bool = True) -> None:
    """The last health answer before it was up, and the first after."""
    ends = time.monotonic() + LIMIT_S
    while time.monotonic() < ends:
        try:
            answer = client.get("/health")
        except httpx.TransportError:
            time.sleep(0.01)
            continue
        if keep:
            _keep("health" if answer.status_code == 200 else "health-loading", answer)
        if answer.status_code == 200:
            return
        time.sleep(0.05)
    raise RuntimeError("not up")


def _busy(client: httpx.Client) -> None:
    """The counters while one request is drawn and one waits."""
    long = {**_SMALL, "size": "256x256", "steps": 20}
    asked = [threading.Thread(target=partial(client.post, ROUTE, json=long)) for _ in range(2)]
    for thread in asked:
        thread.start()
    while "images_requests_waiting 1" not in (page := client.get("/metrics")).text:
        time.sleep(0.01)
    _keep("metrics-busy", page)
    for thread in asked:
        thread.join()


def _keep(name: str, answer: httpx.Response, *, only_status: bool = False) -> None:
    request = answer.request
    kept = Exchange(
        method=request.method,
        path=request.url.raw_path.decode(),
        status=answer.status_code,
        body="" if only_status else answer.text,
    )
    (FOLDER / f"{name}.txt").write_text(kept.text(), encoding="utf-8")


def _clean(text: str, env: Environment) -> str:
    """The text without the key and without the places of this machine; of a bar only its last state."""
    text = text.replace(KEY, "KEY").replace(str(env.folder), "/engine").replace(str(Path(__file__).parents[2]), "/src")
    text = re.sub(r"[^\n]*\r(?!\n)", "", text)
    return re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:8188", text)


if __name__ == "__main__":
    main()
