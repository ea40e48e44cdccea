"""Have Python's event loops wait by poll(2) instead of epoll(7): Python runs this module if its folder is on the path.

asyncio, servers on it such as uvicorn, and all else that uses `selectors` then register no listener with an epoll.
uvloop waits by epoll in C, so asyncio's own loop stands in for it. A module of the same name that this one hides runs
as well.
"""

from __future__ import annotations

import os
import selectors
import sys
from importlib import import_module
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

_UVLOOP = {
    "run": "run",
    "new_event_loop": "new_event_loop",
    "EventLoopPolicy": "DefaultEventLoopPolicy",
    "Loop": "SelectorEventLoop",
}  # its public names, and what asyncio calls the same


def _poll_instead() -> None:
    for name in ("DefaultSelector", "EpollSelector"):
        setattr(selectors, name, selectors.PollSelector)


def _stand_in() -> ModuleType:
    """A module in place of uvloop; asyncio is imported when somebody asks for a name of it."""
    module = ModuleType("uvloop", "asyncio's own loop, in place of uvloop.")

    def lookup(name: str) -> Any:
        if name in _UVLOOP:
            return getattr(import_module("asyncio"), _UVLOOP[name])
        raise AttributeError(f"the stand-in for uvloop has no {name}")

    vars(module).update(__getattr__=lookup, install=lambda: None, __version__="0", __path__=[])
    return module


def _run_hidden() -> None:
    """Run the environment's own `sitecustomize`, if there is one."""
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120  pathlib would double the start's time
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or os.curdir) != here]  # noqa: PTH100
    if PathFinder.find_spec("sitecustomize") is not None:
        del sys.modules["sitecustomize"]
        import_module("sitecustomize")


_poll_instead()
if PathFinder.find_spec("uvloop") is not None:
    sys.modules["uvloop"] = _stand_in()
_run_hidden()
