"""What a deployed container refuses to start with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from supervisor.errors import SupervisorError

__all__ = ["NotAsDeployed"]


@dataclass(eq=False, repr=False, kw_only=True)
class NotAsDeployed(SupervisorError):
    """The volume holds another build, or other weights, than the deploy was made for. Nothing was started.

    Attributes:
        what: which of the two.
        path: the folder.
        deployed: the hash that the deploy fixed.
        seen: the hash of what is there, or why there is none.
    """

    cli_status = 2
    what: Literal["build", "weights"]
    path: str
    deployed: str
    seen: str

    @property
    def summary(self) -> str:
        are = "is" if self.what == "build" else "are"
        return (
            f"the {self.what} in {self.path} {are} not what was deployed: deployed {_short(self.deployed)}, on the "
            f"volume {_short(self.seen)}. Run `modal deploy` again to serve what is there, or bring back what was "
            "deployed."
        )


def _short(value: str) -> str:
    return f"{value[:12]}..." if len(value) == 64 and value.isalnum() else value
