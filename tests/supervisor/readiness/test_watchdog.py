"""The watchdog's inference: a hang is found soon, and a server that works is left alone."""

from __future__ import annotations

import sys

import anyio
import pytest

from hooks.warmup import Ping
from supervisor import Hooks, Liveness, Stop, Timeouts, supervise
from supervisor.errors import ChildUnresponsive
from supervisor.linux import processes
from support import fake_profile

pytestmark = pytest.mark.anyio

# Health is green; a POST is answered never. With "busy", all its time goes into computing.
HANGS = """
import sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class H(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("Content-Length", "0"); self.end_headers()
    def do_POST(self):
        threading.Event().wait()
    def log_message(self, *args): pass
def compute():
    while True: sum(range(100000))
if sys.argv[2] == "busy": threading.Thread(target=compute, daemon=True).start()
server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), H)
server.daemon_threads = True
server.serve_forever()
"""


def command(how: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-S", "-c", HANGS, "{port}", how)


async def test_a_liveness_step_has_a_limit_of_its_own() -> None:
    """A hang behind a green health is found by the short limit of liveness Steps, however long other Steps may take."""
    profile = fake_profile(
        command=command("idle"),
        timeouts=Timeouts(step_s=86_400),
        liveness=Liveness(period_s=0.05, misses=2, inference_every_s=0.1, step_s=0.2),
        stop=Stop(grace_s=0.5),
    )
    with pytest.raises(ChildUnresponsive, match=r"step 'ping': no result within 0\.2 s"), anyio.fail_after(40):
        await supervise(profile, Hooks(liveness=(Ping(),)))


def test_the_limit_is_short_by_default() -> None:
    """A tiny inference that takes a quarter of a minute is a hang."""
    assert Liveness().step_s == 15.0
    assert Ping().deadline_s is None


@pytest.mark.skipif(not processes.AVAILABLE, reason="there is no /proc here")
async def test_a_server_that_computes_is_given_more_time() -> None:
    """Without counters, a Step that times out while the server works is excused, but not for ever."""
    profile = fake_profile(
        command=command("busy"),
        liveness=Liveness(period_s=0.05, misses=2, inference_every_s=0.1, step_s=0.5),
        stop=Stop(grace_s=0.5),
    )
    asked = 0

    class Counted:
        name = "counted"
        deadline_s: float | None = None

        async def __call__(self, child: object) -> None:  # noqa: ARG002  it asks nobody
            nonlocal asked
            asked += 1
            await anyio.sleep_forever()

    with pytest.raises(ChildUnresponsive, match="no result within"), anyio.fail_after(60):
        await supervise(profile, Hooks(liveness=(Counted(),)))
    assert asked > 2  # as many would end a server that does nothing
