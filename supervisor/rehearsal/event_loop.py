"""Servers whose event loop waits by epoll, which some versions of gVisor cannot save: Python ones can wait by poll.

gVisor's release of 2022 (Debian's package) saves a TCP listener that select(2) or poll(2) waits on, and a Unix one
under epoll, but no TCP listener that is registered with an epoll, waited on or not. A rehearsal that meets one begins
once more, with the folder `poll_loop` first on the server's PYTHONPATH. Nothing else of the server changes, and the
report says so.
"""

from __future__ import annotations

import os
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from supervisor.profile import Profile
from supervisor.redact import Secret

__all__ = ["POLLING", "WORDS", "polling"]

POLLING: Final = "WARMBOOT_REHEARSAL_POLLS"
"""The variable by which the program in the sandbox learns that the server is to wait by poll."""

WORDS: Final = "poll instead of epoll in the server's Python event loop: this runsc saves no TCP listener under epoll"

_FOLDER: Final = Path(__file__).with_name("poll_loop")
_PATH: Final = "PYTHONPATH"


def polling(profile: Profile) -> Profile:
    """Return the profile of the same server, whose Python event loops wait by poll."""
    given = profile.env.get(_PATH)
    own = given.reveal() if isinstance(given, Secret) else given
    if own is None and any(fnmatchcase(_PATH, pattern) for pattern in profile.inherit_env):
        own = os.environ.get(_PATH)
    return replace(profile, env={**profile.env, _PATH: os.pathsep.join([str(_FOLDER), *([own] if own else [])])})
