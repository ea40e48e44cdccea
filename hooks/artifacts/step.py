"""A Step for `before_start`: the files of a model are there, and whole."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import anyio.to_thread

from hooks.artifacts.inventory import Artifact, take_inventory
from supervisor.errors import require

if TYPE_CHECKING:
    from supervisor.child import Child

__all__ = ["ArtifactError", "ArtifactsPresent"]


@dataclass(eq=False)
class ArtifactError(Exception):
    """The artifacts are not what they should be.

    Attributes:
        root: the folder.
        problems: everything that is wrong, each with its file.
        mend: the command that puts it right; empty: not known.
    """

    root: Path
    problems: tuple[str, ...]
    mend: str = ""

    def __post_init__(self) -> None:
        super().__init__(self.root, self.problems, self.mend)  # pickle rebuilds an exception from its args

    def __str__(self) -> str:
        what = "\n    ".join([f"the artifacts in {self.root} are not whole:", *self.problems])
        return f"{what}\nTo mend it: {self.mend}" if self.mend else what


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactsPresent:
    """A Step for `before_start`: every artifact is there, marked as whole, with the right size and a sound header.

    Nothing is hashed: that would read all the weights once more at every start. `take_inventory(hashes=True)` does it.

    Attributes:
        root: the folder.
        artifacts: what must be in it; every file that the profile calls weights must be among them.
        repo: the repository that the marker must name; None: any.
        revision: what the marker must name as revision or as commit; None: any.
        mend: the command that errors recommend; empty: none.
        name, deadline_s: see `Step`.
    """

    root: Path
    artifacts: tuple[Artifact, ...]
    repo: str | None = None
    revision: str | None = None
    mend: str = ""
    name: str = "artifacts"
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        require(bool(self.artifacts), f"{self.name}.artifacts", self.artifacts, "at least one artifact")

    async def __call__(self, child: Child) -> None:
        """Look at every file; in a thread, because a volume may block.

        Raises:
            ArtifactError: something is wrong; it names each file.
        """
        await anyio.to_thread.run_sync(self._look, child.profile.weights, abandon_on_cancel=True)

    def _look(self, weights: tuple[Path, ...]) -> None:
        known = {os.path.abspath(self.root / artifact.path) for artifact in self.artifacts}  # noqa: PTH100 - keeps links
        strangers = [path for path in weights if os.path.abspath(path) not in known]  # noqa: PTH100
        problems = [f"{path}: the server will load it, but it is not among the artifacts" for path in strangers]
        found = take_inventory(self.root, self.artifacts, hashes=False, repo=self.repo, revision=self.revision)
        if problems := [*found.problems, *problems]:
            raise ArtifactError(self.root, tuple(problems), self.mend)
