"""Limits that count only time in which this process ran, and work side by side.

Imports nothing of the project.
"""

from supervisor.timing.limits import Limit, running_limit, sleep_running
from supervisor.timing.racing import alongside, race

__all__ = ["Limit", "alongside", "race", "running_limit", "sleep_running"]
