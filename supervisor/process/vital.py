"""The child's vital processes: descendants, such as an engine's workers, whose end is the end of the child.

An engine's front may live on for seconds after its worker has died, refuse every request meanwhile, and then exit with
code 0. So the worker itself is watched: found by looks at /proc, and from then on waited for by a descriptor.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import anyio

from supervisor.linux import processes
from supervisor.linux.exhaustion import look
from supervisor.linux.files import argv, name_of
from supervisor.process.exits import signal_name
from supervisor.redact import Redactor
from supervisor.timing.racing import race

_SHARE: Final = 20  # a look takes this part of the time between two at most: /proc of a crowded machine is slow
_POLL_S: Final = 0.25  # where the kernel has no pidfd: gVisor, kernels before 5.3
_MAX_CHARS: Final = 4096  # of a command line that are searched


@dataclass(frozen=True, slots=True, kw_only=True)
class VitalEnd:
    """The end of a vital process; `exit_code` and `signal` are None when its parent took them first.

    Attributes:
        pid: it was.
        command: its command line when it was found, masked and cut; what matched stands before it if it is not there.
        exit_code, signal: how it ended, where that can be known.
    """

    pid: int
    command: str
    exit_code: int | None = None
    signal: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """A vital process that was found: which one it is, and its pidfd, if there are such."""

    pid: int
    began: int
    command: str
    fd: int | None


class VitalProcesses:
    """Finds and watches the vital processes of one life. Close it at the end.

    Args:
        patterns: regular expressions; one must be found in the command line or the name of a process.
        leader: the child, which is none of them.
        cookie: of its life.
        redact: masks the command lines.
    """

    def __init__(self, patterns: Sequence[str], leader: int, cookie: str | None, redact: Redactor) -> None:
        self._patterns = [re.compile(pattern) for pattern in patterns]
        self._leader = leader
        self._cookie = cookie
        self._redact = redact
        self._known: dict[int, _Known] = {}
        self._took_s = 0.0

    async def until_one_ends(self, look_every_s: float) -> VitalEnd:
        """Returns as soon as a process that was found has ended; looks for more now and every so many seconds.

        Who was found stays known between two calls. Cancellation is safe at any time and leaves no task or timer.
        """
        delay_s = 0.0
        while True:
            waits = [partial(self._until_end, known) for known in self._known.values()]
            if end := await race(*waits, partial(self._find_after, delay_s)):
                return end
            delay_s = max(look_every_s, _SHARE * self._took_s)

    async def find(self) -> None:
        """Looks for vital processes once; those that run now are known afterwards. Cancellation is safe at any time."""
        began = time.monotonic()
        for found in await look(self._look) or ():
            known = self._known.get(found.pid)
            if known is not None and known.began == found.began:
                continue  # another look has found it meanwhile
            if known is not None and known.fd is not None:
                os.close(known.fd)  # that one has ended, and its number is another's
            fd = None
            with contextlib.suppress(OSError, AttributeError):  # no pidfd here, none left, or it has just ended
                fd = os.pidfd_open(found.pid)
            if fd is not None and not _lives(found.pid, found.began):
                os.close(fd)  # perhaps of another process with the same number
                fd = None
            self._known[found.pid] = replace(found, fd=fd)
        self._took_s = time.monotonic() - began

    def ended(self) -> VitalEnd | None:
        """The end of a process that was found and has ended by now; None: all live."""
        return next((_end_of(known) for known in self._known.values() if not _lives(known.pid, known.began)), None)

    def close(self) -> None:
        """Closes every descriptor."""
        for known in self._known.values():
            if known.fd is not None:
                os.close(known.fd)
        self._known.clear()

    async def _until_end(self, known: _Known) -> VitalEnd:
        if known.fd is not None:
            await anyio.wait_readable(known.fd)
        while known.fd is None and _lives(known.pid, known.began):  # noqa: ASYNC110  there is nothing to await
            await anyio.sleep(_POLL_S)
        return _end_of(known)

    async def _find_after(self, delay_s: float) -> None:
        await anyio.sleep(delay_s)
        await self.find()

    def _look(self) -> list[_Known]:
        """Vital processes that are not known yet, without descriptors. A look at all of /proc."""
        found = []
        for member in processes.living(self._leader, self._cookie):
            known = self._known.get(member.pid)
            if member.pid == self._leader or (known is not None and known.began == member.began):
                continue
            shown = _shown(member.pid)
            # A fork that has no title of its own yet, because it is about to become another program, or is a helper.
            if not (matched := self._match(*shown)) or shown == _shown(member.parent):
                continue
            command = processes.command_line(argv(member.pid) or shown[1:], self._redact)
            if matched not in command:
                command = f"{self._redact(matched)}: {command}"
            found.append(_Known(pid=member.pid, began=member.began, command=command, fd=None))
        return found

    def _match(self, line: str, name: str) -> str:
        """What was found of a pattern in the command line, or the name in which one was found; empty: none was."""
        for pattern in self._patterns:
            if pattern.search(name):
                return name
            if (match := pattern.search(line)) and match[0]:
                return match[0]
        return ""


def _end_of(known: _Known) -> VitalEnd:
    code, by = None, None
    if (status := processes.exit_status(known.pid, known.began)) is not None:
        code, by = (None, signal_name(status & 0x7F)) if status & 0x7F else (status >> 8, None)
    return VitalEnd(pid=known.pid, command=known.command, exit_code=code, signal=by)


def _lives(pid: int, began: int) -> bool:
    found = processes.stat(pid)
    return found is not None and found.began == began and not found.zombie


def _shown(pid: int) -> tuple[str, str]:
    """A process's command line, and its name."""
    return " ".join(argv(pid))[:_MAX_CHARS].strip(), name_of(pid)
