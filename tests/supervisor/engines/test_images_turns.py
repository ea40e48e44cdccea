"""Who is served when: the load, the queue, clients that go away, SIGTERM, and the ends that nobody asked for."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from supervisor.engines.images import IMAGES, accept
from supervisor.profile import Stop
from support import until
from tools.image_server import KEY, ROUTE, SMALL, Server, images, pipeline, running

LONG: dict[str, Any] = {**SMALL, "steps": 1000}  # a minute, unless it is given up
STEP_S = 0.06


@contextmanager
def asking(server: Server, *bodies: dict[str, Any]) -> Iterator[list[Future[httpx.Response]]]:
    """Requests at the same time, each begun once the one before it has its place."""
    with ThreadPoolExecutor(max(1, len(bodies))) as pool:
        asked = []
        for number, body in enumerate(bodies, 1):
            asked.append(pool.submit(server.post, body))
            until(lambda number=number: sum(places(server)) >= number)  # type: ignore[misc]
        yield asked


def places(server: Server) -> tuple[int, int]:
    """How many requests run and wait."""
    said = server.health()[1]
    return said.get("running", 0), said.get("waiting", 0)


def leave_in_the_middle(server: Server, body: bytes) -> socket.socket:
    """A client that has sent its request and reads nothing."""
    connection = socket.create_connection(("127.0.0.1", server.port))
    head = f"POST {ROUTE} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


class Gated:
    """A server whose images go on step by step, as it is told.

    Attributes:
        server: it.
        gate: a file with the number of steps that each image may have done.
    """

    def __init__(self, server: Server, gate: Path) -> None:
        self.server = server
        self._gate = gate

    def open(self, steps: int) -> None:
        """Let each image have done so many steps."""
        self._gate.with_suffix(".new").write_text(str(steps))
        self._gate.with_suffix(".new").replace(self._gate)


@contextmanager
def gated(folder: Path, **settings: Any) -> Iterator[Gated]:
    """Such a server, its gate closed."""
    with running(pipeline(folder, gated=True), **settings) as server:
        yield Gated(server, folder / "gate")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gated]:
    """A server with room for one that waits."""
    with gated(tmp_path_factory.mktemp("gated"), max_queue=1) as it:
        yield it


def test_the_queue_is_bounded(one: Gated) -> None:
    """One request is drawn, one waits, the third is refused with 503 and told when to come again."""
    one.open(0)
    with asking(one.server, SMALL, SMALL) as asked:
        assert places(one.server) == (1, 1)
        assert IMAGES.requests[0].read(one.server.get("/metrics").text) == 2
        refused = one.server.post(SMALL)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "queue_full"
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        one.open(4)
        assert [each.result().status_code for each in asked] == [200, 200]
    assert places(one.server) == (0, 0)


def test_each_step_counts_as_work(one: Gated) -> None:
    """While an image is drawn the counter of steps grows, so that the watchdog takes a long one for traffic."""
    one.open(0)
    steps, images = (one.server.count(f"images_{what}_total") for what in ("steps", "generated"))
    with asking(one.server, SMALL) as (asked,):
        for done in (1, 2, 3):
            one.open(done)
            until(lambda done=done: one.server.count("images_steps_total") == steps + done)  # type: ignore[misc]
            assert one.server.count("images_generated_total") == images
        one.open(4)
        assert asked.result().status_code == 200
    assert one.server.count("images_generated_total") == images + 1


def test_a_client_that_goes_away_ends_its_image_with_the_step(one: Gated) -> None:
    """The running one is given up, and so is one that waits; the next request is served."""

    def steps() -> float:
        return one.server.count("images_steps_total")

    one.open(0)
    images = one.server.count("images_generated_total")
    with leave_in_the_middle(one.server, b'{"prompt": "a", "size": "16x16", "steps": 9}') as first:
        until(lambda: places(one.server) == (1, 0))
        with leave_in_the_middle(one.server, b'{"prompt": "b", "size": "16x16", "steps": 9}'):
            until(lambda: places(one.server) == (1, 1))
        until(lambda: places(one.server) == (1, 0))
        first.close()
        before = steps()
        for done in range(1, 9):  # the first step may end before the server has seen the client go
            one.open(done)
            until(lambda done=done: places(one.server) == (0, 0) or steps() == before + done)  # type: ignore[misc]
        until(lambda: places(one.server) == (0, 0))
    one.open(9)
    assert one.server.post(SMALL).status_code == 200
    assert one.server.count("images_generated_total") == images + 1
    assert any("given up, because nobody waits for it" in line for line in one.server.lines)


def test_the_load_is_told_by_its_stage(tmp_path: Path) -> None:
    """While it loads it listens, health names the stage, and whoever has the key is told to come again."""
    with running(pipeline(tmp_path / "model", hang_load=True), ready=False) as server:
        until(lambda: server.health()[1].get("stage") == "weights")
        status, said = server.health()
        assert (status, said["status"], said["stage"]) == (503, "loading", "weights")
        reason = accept(status, server.get("/health").text)
        assert reason == "the pipeline is loading: weights"
        assert IMAGES.loading
        assert IMAGES.loading in reason
        refused = server.post(SMALL)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "loading")
        assert int(refused.headers["Retry-After"]) > 0
        assert server.post(SMALL, Authorization="Bearer wrong").status_code == 401
        server.signal()
        assert server.process.wait(30) == 0, "a load that hangs does not keep it from stopping"


@pytest.mark.parametrize(
    ("faults", "settings", "words"),
    [
        ({"load_error": "memory"}, {}, "(out of memory): OutOfMemoryError: CUDA out of memory"),
        ({}, {"pipeline": "fakes.image_pipeline:Missing"}, "fakes.image_pipeline has no class Missing"),
        ({}, {"dtype": "bfloat16"}, "No module named 'torch'"),
    ],
    ids=["memory", "class", "torch"],
)
def test_a_load_that_fails_ends_the_server(
    tmp_path: Path, faults: dict[str, Any], settings: dict[str, Any], words: str
) -> None:
    """It exits with code 1, and the last line says why."""
    with running(pipeline(tmp_path / "model", **faults), ready=False, **settings) as server:
        assert server.process.wait(30) == 1
    assert words in server.lines[-1]
    assert server.lines[-1].startswith("ERROR ")


def test_a_lost_device_ends_the_server(tmp_path: Path) -> None:
    """After an error that outlives the image, the client is told and the process ends with code 1."""
    with running(pipeline(tmp_path / "model", by_prompt={"a": "lost"})) as server:
        answer = server.post(SMALL)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "broken")
        assert server.process.wait(30) == 1
    assert any(line.startswith("ERROR the device is lost") for line in server.lines)


def test_sigterm_lets_the_running_image_finish_and_refuses_the_others(tmp_path: Path) -> None:
    """The running request is answered, the waiting one and new ones get 503, and the exit code is 0."""
    with gated(tmp_path / "model") as it:
        server = it.server
        with asking(server, SMALL, SMALL) as (drawn, waiting):
            server.signal()
            refused = waiting.result()
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "stopping")
            assert server.health()[0] == 503
            assert server.post(SMALL).status_code == 503
            it.open(4)
            assert drawn.result().status_code == 200
        assert server.process.wait(30) == 0


@pytest.mark.parametrize("faults", [{"step_s": STEP_S}, {"hang_at": 0}], ids=["long", "hangs"])
def test_when_the_grace_is_over_the_image_is_given_up(tmp_path: Path, faults: dict[str, Any]) -> None:
    """A long image ends with its step, one that hangs with the process; the exit code is 0 either way."""
    folder = pipeline(tmp_path / "model", **faults)
    with running(folder, stop=Stop(grace_s=0.4), max_steps=1000) as server, asking(server, LONG) as (asked,):
        server.signal(signal.SIGINT)
        assert server.process.wait(30) == 0
        assert asked.result().status_code == 503
    assert any("given up after 0.2 s" in line for line in server.lines)


def test_a_taken_port_is_said(tmp_path: Path) -> None:
    """Who cannot listen loads nothing, and exits with code 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = images(pipeline(tmp_path / "model"), port=port).profile().command
        argv = [word.format(host="127.0.0.1", port=port) for word in command]
        done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"ERROR cannot listen on 127.0.0.1:{port}: Address already in use"]


def test_an_old_pipeline_is_served_as_far_as_it_goes(tmp_path: Path) -> None:
    """One that knows no guidance and calls nobody back draws, and a guidance that is asked for is refused."""
    old: dict[str, Any] = {"pipeline": "fakes.image_pipeline:Plain", "guidance": None}
    with running(pipeline(tmp_path / "model"), **old) as server:
        assert server.post(SMALL).status_code == 200
        refused = server.post({**SMALL, "guidance": 2})
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, "guidance")
