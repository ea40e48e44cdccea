"""Steps that warm a server with real requests and judge the answers.

May import hooks.http and supervisor.
"""

from hooks.warmup.request_file import CHAT, RawJson, Repeat
from hooks.warmup.steps import Image, Ping, Text, Thinking, Tools, chat, liveness_after, parse

__all__ = ["CHAT", "Image", "Ping", "RawJson", "Repeat", "Text", "Thinking", "Tools", "chat", "liveness_after", "parse"]
