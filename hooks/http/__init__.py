"""One way to ask an endpoint and to judge its answer: text, stream, pictures, counters, retries while it wakes.

What differs between engines (routes, fields, counters) comes from the dialect of the child's profile. May import
supervisor.
"""

from hooks.http.answer import Answer, BadAnswer
from hooks.http.ask import ask
from hooks.http.chat import chat
from hooks.http.dialect import Unsupported

__all__ = ["Answer", "BadAnswer", "Unsupported", "ask", "chat"]
