"""Steps that warm a server with real requests and judge the answers, and the watchdog's inference after them.

May import hooks.http and supervisor.
"""

from hooks.warmup.draw import Draw
from hooks.warmup.liveness import Repeat, liveness_after
from hooks.warmup.request_file import RawJson
from hooks.warmup.steps import Image, Ping, Text, Thinking, Tools, parse

__all__ = ["Draw", "Image", "Ping", "RawJson", "Repeat", "Text", "Thinking", "Tools", "liveness_after", "parse"]
