"""Steps that warm a server with real requests and judge the answers.

May import hooks.http and supervisor.
"""

from hooks.warmup.liveness import Repeat, liveness_after
from hooks.warmup.request_file import CHAT, RawJson
from hooks.warmup.steps import Image, Ping, Text, Thinking, Tools, chat, parse

__all__ = ["CHAT", "Image", "Ping", "RawJson", "Repeat", "Text", "Thinking", "Tools", "chat", "liveness_after", "parse"]
