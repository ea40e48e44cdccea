"""Readiness loops of peers, from their constants: a first pause, then a pause after every probe that failed.

Sources: the examples of Modal (`very_large_models`, `sglang_snapshot`), llama-swap's `process.go`, and the common
backoff of 0.5 s that grows by half up to 5 s.
"""

from __future__ import annotations

import http.client
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """One loop: the first probe comes `first_s` after the spawn; `pauses()` yields what follows each failed one."""

    name: str
    pauses: Callable[[], Iterator[float]]
    first_s: float = 0.0

    def wait(self, healthy: Callable[[], bool]) -> int:
        """Runs for real; returns the number of probes."""
        time.sleep(self.first_s)
        for probes, pause_s in enumerate(self.pauses(), 1):
            if healthy():
                return probes
            time.sleep(pause_s)
        raise AssertionError("the pauses do not end")

    def replay(self, ready_s: float, *, probe_s: float) -> float:
        """When the loop would have noticed, in seconds after the spawn, a server that is ready at `ready_s`.

        A probe takes `probe_s`, and sees a server that is ready when the probe begins.
        """
        at = self.first_s
        for pause_s in self.pauses():
            if at >= ready_s:
                return at + probe_s
            at += probe_s + pause_s
        raise AssertionError("the pauses do not end")


def _backoff() -> Iterator[float]:
    return (min(0.5 * 1.5**n, 5.0) for n in itertools.count())


LOOPS: Final = (
    Loop(name="backoff 0.5 s x 1.5 to 5 s", pauses=_backoff),
    Loop(name="every 1 s", pauses=lambda: itertools.repeat(1.0)),
    Loop(name="every 5 s", pauses=lambda: itertools.repeat(5.0)),
    Loop(name="llama-swap (0.25 s, then 1 s)", pauses=lambda: itertools.repeat(1.0), first_s=0.25),
)


def healthy(port: int) -> bool:
    """One probe as these loops send it: a new connection, the status alone."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
