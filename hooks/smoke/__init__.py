"""Checks of an endpoint from outside, as a client sees it, and their report.

`run` waits for the endpoint and runs the checks, `checks` and `wake` are the checks, `report` is the outcome. May
import hooks.http, hooks.auth, hooks.warmup and supervisor.
"""

from hooks.smoke.report import SmokeReport
from hooks.smoke.run import Options, smoke

__all__ = ["Options", "SmokeReport", "smoke"]
