"""An OCI runtime bundle: what runs in a sandbox, and what it sees of this machine.

The format: https://github.com/opencontainers/runtime-spec/blob/main/config.md
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["Mount", "Program"]

# What root in a container usually has (the default set of the OCI runtimes), and ptrace for looking into /proc.
_CAPABILITIES: Final = (
    *("CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD"),
    *("CAP_NET_BIND_SERVICE", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT"),
    "CAP_SYS_PTRACE",
)
_NAMESPACES: Final = ("pid", "ipc", "uts", "mount", "network")
_OWN: Final = (
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
    {"destination": "/sys", "type": "sysfs", "source": "sysfs"},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A file or folder of the host at a path of the sandbox; both sides see each other's writes, unless `readonly`."""

    source: Path
    target: Path
    readonly: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What runs in the sandbox, as root, over the host's root file system."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path

    def write(self, folder: Path, mounts: Sequence[Mount]) -> None:
        """Makes `folder` the bundle of this program, in place of what was there."""
        bound = [
            {
                "destination": str(mount.target),
                "type": "bind",
                "source": str(mount.source),
                "options": ["rbind", "ro" if mount.readonly else "rw"],
            }
            for mount in sorted(mounts, key=lambda mount: mount.target.parts)  # outer ones first
        ]
        process = {
            "user": {"uid": 0, "gid": 0},
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted", "inheritable"), _CAPABILITIES),
            "args": self.argv,
            "env": [f"{name}={value}" for name, value in self.env.items()],
            "cwd": str(self.cwd),
        }
        config = {
            "ociVersion": "1.0.2",
            "hostname": "rehearsal",
            "root": {"path": "/", "readonly": False},
            "process": process,
            "mounts": [*_OWN, *bound],
            "linux": {"namespaces": [{"type": kind} for kind in _NAMESPACES]},
        }
        folder.mkdir(exist_ok=True)
        file = folder / "config.json"
        file.touch(mode=0o600)  # it holds the environment
        file.write_text(json.dumps(config), encoding="utf-8")
