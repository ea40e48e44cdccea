"""Steps that warm a server with real requests and judge the answers.

May import hooks.http and supervisor.
"""

from hooks.warmup.request_file import CHAT, RawJson
from hooks.warmup.steps import Image, Ping, Text, Thinking, Tools, chat, parse

__all__ = ["CHAT", "Image", "Ping", "RawJson", "Text", "Thinking", "Tools", "chat", "parse"]
