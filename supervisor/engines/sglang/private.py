"""The private YAML file by which SGLang learns its keys: it knows no variable for them, and argv is everybody's.

SGLang takes one `--config`, so that the user's own file stands in front of the keys in ours. The file lives from
`before_start` until the server has read it and is up; a restart writes it anew.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from supervisor import events
from supervisor.engines.sglang.flags import check_config
from supervisor.steps import step

if TYPE_CHECKING:
    from collections.abc import Collection

    from supervisor.child import Child
    from supervisor.steps import Step

__all__ = ["ADMIN_KEY", "PrivateConfig", "path_in"]

ADMIN_KEY: Final = "WARMBOOT_SGLANG_ADMIN_KEY"
"""The variable in which the profile carries the key of the administration to its Steps; SGLang does not read it."""

_GONE: Final = (events.TeardownFinished, events.Failed, events.Stopped)


@dataclass(slots=True)
class _Written:
    """Where the file lies, and the descriptor that holds its lock; None: nowhere."""

    path: Path | None = None
    lock: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateConfig:
    """Writes the file before each start, and removes it as soon as nobody needs it.

    Attributes:
        users: the user's own YAML, which comes first; None: there is none.
        given: the settings that have a value, which the user's file must not contradict.
    """

    users: Path | None = None
    given: Collection[str] = ()
    _written: _Written = field(default_factory=_Written, init=False, repr=False, compare=False)

    @property
    def write(self) -> Step:
        """For `before_start`: the file is written where the child will look for it."""
        return step("sglang-private-config", self._write)

    @property
    def forget(self) -> Step:
        """For `warmup`: the server is up and has read the file."""
        return step("sglang-forget-config", self._forget)

    def observe(self, event: events.Event) -> None:
        """Remove the file of a child that has ended, or never began."""
        if isinstance(event, _GONE):
            self._remove()

    async def _write(self, child: Child) -> None:
        path = path_in(child.argv)
        self._remove()
        text = self._text(child)
        _sweep(path)
        _private_folder(path.parent)
        self._written.path = path
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with suppress(OSError):  # no locks here: nobody sweeps either
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._written.lock = os.dup(descriptor)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, 0o600)  # whatever the umask says
            file.write(text)

    async def _forget(self, _: Child) -> None:
        self._remove()

    def _remove(self) -> None:
        path, self._written.path = self._written.path, None
        lock, self._written.lock = self._written.lock, None
        if path is not None:
            with suppress(OSError):
                path.unlink(missing_ok=True)
                path.parent.rmdir()
        if lock is not None:
            os.close(lock)

    def _text(self, child: Child) -> str:
        lines = []
        indent = ""
        if self.users is not None:
            check_config(self.users, self.given)  # it may have changed since the profile was made
            users = self.users.read_text(encoding="utf-8-sig")
            first = re.search(r"(?m)^( *)[^\s#-]", users)
            indent = first[1] if first else ""
            lines.append(users)
        key = child.profile.api_key
        keys = {"api-key": key.reveal() if key else None, "admin-api-key": child.env.get(ADMIN_KEY)}
        lines += [f"{indent}{name}: {json.dumps(value)}" for name, value in keys.items() if value is not None]
        return "\n".join(lines) + "\n"


def path_in(argv: tuple[str, ...]) -> Path:
    """Return the file that a command names with its last `--config`; a wrapper may have one of its own."""
    return Path(argv[len(argv) - argv[::-1].index("--config")])


def _sweep(path: Path) -> None:
    """Remove the files of supervisors that were killed meanwhile: nobody holds their locks.

    One that is empty is being made: it is locked before the keys are written.
    """
    pattern = f"{path.parent.name.rpartition('-')[0]}-*/{path.name}"
    for left in path.parent.parent.glob(pattern):
        with suppress(OSError):
            descriptor = os.open(left, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                seen = os.fstat(descriptor)
                if seen.st_uid == os.geteuid() and stat.S_ISREG(seen.st_mode) and seen.st_size:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    left.unlink()
                    left.parent.rmdir()
            finally:
                os.close(descriptor)


def _private_folder(folder: Path) -> None:
    """Make a folder that only we may enter; one that is there already must be such a one."""
    folder.mkdir(mode=0o700, exist_ok=True)
    seen = folder.lstat()
    private = stat.S_ISDIR(seen.st_mode) and seen.st_uid == os.geteuid() and not seen.st_mode & 0o077
    if not private:
        raise PermissionError(f"{folder} is not a folder of ours alone: the keys are not written there")
