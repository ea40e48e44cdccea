"""Limits that count only time in which this process ran.

Imports nothing of the project.
"""

from supervisor.timing.running_limit import Limit, running_limit, sleep_running

__all__ = ["Limit", "running_limit", "sleep_running"]
