"""Whether the program is the one that the profile asks for: pure functions of its command line and its variables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hooks.contract.findings import Finding
from supervisor.redact import is_secret_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from supervisor.child import Child

__all__ = ["command", "environment", "stray_secrets"]

_REWRITTEN: Final = ""  # see `procfiles.environment`


def command(child: Child, argv: Sequence[str], pid: int) -> list[Finding]:
    """The command is the profile's; a script's begins with its interpreter."""
    wanted = child.argv
    # Compared as /proc shows arguments: bytes that are no text are lost on both sides.
    shown = tuple(word.encode(errors="surrogateescape").decode(errors="replace") for word in wanted)
    if tuple(argv) == shown or (len(wanted) > 1 and tuple(argv[-len(shown) + 1 :]) == shown[1:]):
        return []
    return [
        Finding(
            check="command",
            severity="warning",
            pid=pid,
            what="runs another command: it replaced itself, or set its title",
            where=f"/proc/{pid}/cmdline",
            line=" ".join(child.redact.argv(argv)),
            fix="if that is a wrapper's work, make sure that it started what you meant",
        )
    ]


def environment(child: Child, seen: Mapping[str, str], pid: int) -> list[Finding]:
    """Every variable that the profile sets is there, with its value."""
    where = f"/proc/{pid}/environ"
    if _REWRITTEN in seen:
        fix = "none is needed; the variables of this process cannot be checked"
        what = "has written over the variables that it was started with"
        return [Finding(check="environment", severity="warning", pid=pid, what=what, where=where, fix=fix)]
    return [
        Finding(
            check="environment",
            pid=pid,
            what=f"{'lacks' if name not in seen else 'has another value of'} the profile's variable {name}",
            where=where,
            fix="look at the wrapper that changes it: the snapshot would keep it so for ever",
        )
        for name, value in child.env.items()
        if seen.get(name) != value
    ]


def stray_secrets(child: Child, seen: Mapping[str, str], pid: int) -> list[Finding]:
    """No secret of the host, as far as names tell, slipped in through `inherit_env`."""
    meant = {*child.profile.env, child.profile.api_key_env}
    return [
        Finding(
            check="stray-secret",
            pid=pid,
            what=f"has inherited the secret {name}, which the snapshot would keep",
            where=f"/proc/{pid}/environ",
            fix=f"narrow the profile's inherit_env, or name {name} in env if the server needs it",
        )
        for name, value in seen.items()
        if value.strip() and name not in meant and is_secret_name(name)
    ]
