"""Structured concurrency: `race` and `alongside`, and timeouts that do not count time while this process was suspended.

Imports nothing of the project.
"""

from supervisor.timing.limits import Limit, running_limit, sleep_running
from supervisor.timing.racing import alongside, race

__all__ = ["Limit", "alongside", "race", "running_limit", "sleep_running"]
