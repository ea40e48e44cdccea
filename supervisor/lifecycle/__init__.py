"""The lifecycle of one supervised server: starts, restarts, seal, resume and stop.

May import process, logs, readiness, timing, linux and the modules below them;
nothing of engines, the command line or hooks.
"""

from supervisor.lifecycle.daemon import Daemon
from supervisor.lifecycle.handle import Supervised
from supervisor.lifecycle.supervise import supervise

__all__ = ["Daemon", "Supervised", "supervise"]
