"""An async supervisor for servers that run as a child process, above all LLM servers.

`supervise(profile, hooks)` for async hosts, `Daemon(profile, hooks)` for synchronous ones. Linux is the target; macOS
works for development.
"""

import sys

if sys.platform == "win32":
    raise ImportError("warmboot needs POSIX process groups and signals: run it on Linux, macOS or inside WSL 2")

from supervisor import errors, events
from supervisor.child import Child
from supervisor.errors import SupervisorError
from supervisor.events import Event, Level, State
from supervisor.levels import ParseLine, plain_line
from supervisor.lifecycle.daemon import Daemon
from supervisor.lifecycle.handle import Supervised
from supervisor.lifecycle.supervise import supervise
from supervisor.logs.sink import LogFormat, Sink
from supervisor.profile import (
    Accept,
    Health,
    Liveness,
    LogLimits,
    Profile,
    Restart,
    Stop,
    Timeouts,
    accept_2xx,
)
from supervisor.redact import Redactor, Secret
from supervisor.steps import Hooks, Observer, Step, step

__all__ = [
    "Accept",
    "Child",
    "Daemon",
    "Event",
    "Health",
    "Hooks",
    "Level",
    "Liveness",
    "LogFormat",
    "LogLimits",
    "Observer",
    "ParseLine",
    "Profile",
    "Redactor",
    "Restart",
    "Secret",
    "Sink",
    "State",
    "Step",
    "Stop",
    "Supervised",
    "SupervisorError",
    "Timeouts",
    "accept_2xx",
    "errors",
    "events",
    "plain_line",
    "step",
    "supervise",
]
