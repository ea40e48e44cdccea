"""The model hub, through huggingface-hub: what a repository holds, and fetching one file of it.

`HF_XET_HIGH_PERFORMANCE=1` is set before that package is imported, because it reads its environment then (19 GB take 1
to 2 minutes over Xet, 5 to 10 over plain HTTP). The package is imported on first use: entries stay light.
"""

from __future__ import annotations

import errno
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from supervisor.errors import SupervisorError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from supervisor.redact import Secret

__all__ = ["DownloadError", "Hub", "Remote"]

LISTING_S: Final = 30.0
PROGRESS_S: Final = 10.0
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(eq=False, repr=False, kw_only=True)
class DownloadError(SupervisorError):
    """Downloading cannot succeed, however often it is tried.

    Attributes:
        repo: the repository.
        problem: the kind of obstacle.
        detail: what was seen, and what to try.
    """

    repo: str
    problem: Literal["not in the repository", "not as expected", "damaged at its source", "disk full", "busy"]
    detail: str

    @property
    def summary(self) -> str:
        return f"cannot download {self.repo}: {self.problem}: {self.detail}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A file as the hub describes it.

    Attributes:
        path: in the repository.
        size_bytes: its size.
        sha256: its hash; None for small files, of which the hub keeps none.
    """

    path: str
    size_bytes: int
    sha256: str | None


class Hub:
    """One repository at one revision.

    Args:
        repo: such as `owner/name`.
        revision: a branch, a tag or a commit.
        token: sent to the hub; None: none is sent, not even one that is stored on this machine.
        log: where progress goes when there is no terminal: called with an event's name and values.
    """

    def __init__(self, repo: str, revision: str, token: Secret | None, log: Any) -> None:
        os.environ.setdefault("HF_XET_HIGH_PERFORMANCE", "1")
        self.repo = repo
        self.revision = revision
        self._token: str | Literal[False] = token.reveal().strip() if token else False
        self._log = log

    def listing(self, paths: Sequence[str]) -> tuple[str, Mapping[str, Remote]]:
        """The commit that the revision means now, and its files at `paths`.

        Raises:
            DownloadError: the repository lacks one of them.
            Exception: huggingface-hub's own, when the hub cannot be asked or refuses.
        """
        from huggingface_hub import HfApi

        info = HfApi(token=self._token).model_info(
            self.repo, revision=self.revision, files_metadata=True, timeout=LISTING_S
        )
        siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
        if lost := [path for path in paths if path not in siblings]:
            kin = [name for name in siblings if name.endswith(os.path.splitext(lost[0])[1])]  # noqa: PTH122
            there = ", ".join(sorted(kin or siblings)[:20]) or "nothing"
            detail = f"{', '.join(lost)} at revision {self.revision!r}. There: {there}"
            raise DownloadError(repo=self.repo, problem="not in the repository", detail=detail)
        if not info.sha:
            detail = f"the hub names no commit for revision {self.revision!r}"
            raise DownloadError(repo=self.repo, problem="not as expected", detail=detail)
        remotes = {}
        for path in paths:
            size, lfs = siblings[path].size, siblings[path].lfs
            remotes[path] = Remote(path=path, size_bytes=size or 0, sha256=lfs.sha256 if lfs else None)
        return info.sha, remotes

    def fetch(self, path: str, commit: str, root: Path) -> None:
        """Brings one file to `root / path`; a connection that is cut in the middle is resumed where it ended.

        Raises:
            DownloadError: the disk is full.
            Exception: huggingface-hub's own.
        """
        from huggingface_hub import hf_hub_download

        lines = None if sys.stderr.isatty() else _lines(self._log)
        try:
            hf_hub_download(
                self.repo,
                path,
                revision=commit,
                local_dir=root,
                cache_dir=root,  # an empty one: a damaged copy in this machine's cache would come again and again
                token=self._token,
                tqdm_class=lines,
            )
        except Exception as error:
            # Xet's errors are only text.
            if getattr(error, "errno", None) in _FULL or "No space left" in str(error):
                detail = f"while {path} was written to {root}: {error}. Make room, or use a larger volume"
                raise DownloadError(repo=self.repo, problem="disk full", detail=detail) from error
            raise


def worth_retrying(error: BaseException) -> bool:
    """Whether time may heal it: not wrong names, refused tokens, offline mode and what `DownloadError` stands for."""
    from huggingface_hub import errors as hub

    hopeless = (
        *(DownloadError, hub.RepositoryNotFoundError, hub.RevisionNotFoundError, hub.RemoteEntryNotFoundError),
        *(hub.HFValidationError, hub.OfflineModeIsEnabled, hub.DisabledRepoError),
    )
    if not isinstance(error, Exception) or isinstance(error, hopeless):
        return False
    return not isinstance(error, hub.HfHubHTTPError) or error.response.status_code not in (401, 403)


def _lines(log: Any) -> Any:
    """A progress bar that writes a log line every 10 s instead, for logs that no terminal shows."""
    from huggingface_hub.utils.tqdm import tqdm

    class Lines(tqdm):
        monitor_interval = 0  # no thread of its own

        def __init__(self, *args: Any, **options: Any) -> None:
            # The client disables bars where there is no terminal.
            options |= {"disable": False, "mininterval": PROGRESS_S, "miniters": 1}
            super().__init__(*args, **options)  # type: ignore[no-untyped-call]

        def display(self, *_: Any, **__: Any) -> None:
            log("download.progress", file=self.desc, bytes=self.n, total_bytes=self.total)

    return Lines
