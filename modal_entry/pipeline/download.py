"""Bringing a model's files to a volume: resumed, retried, verified, and marked as whole only at the end."""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

import structlog
from filelock import Timeout
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_chain, wait_fixed

from hooks.artifacts.files import sha256_of
from hooks.artifacts.inventory import Artifact, take_inventory
from hooks.artifacts.marker import MARKER, Marker
from hooks.artifacts.step import ArtifactError
from modal_entry.pipeline.commands import host_lock
from modal_entry.pipeline.hub import DownloadError, Hub, Remote, worth_retrying
from supervisor.errors import ProfileError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from supervisor.redact import Secret

__all__ = ["DownloadError", "Downloaded", "download"]

ATTEMPTS: Final = 3
WAITS_S: Final = (30.0, 60.0, 90.0)  # after the first, the second, the third and every further attempt

T = TypeVar("T")

log = structlog.get_logger("warmboot.download")


@dataclass(frozen=True, slots=True, kw_only=True)
class Downloaded:
    """What a download did.

    Attributes:
        marker: what the folder holds now.
        fetched: files that were brought.
        kept: files that were there already, and whole.
    """

    marker: Marker
    fetched: tuple[str, ...]
    kept: tuple[str, ...]


def download(
    repo_id: str,
    files: Sequence[Artifact],
    revision: str,
    root: Path,
    *,
    token: Secret | None,
    on_commit: Callable[[], None],
    sleep: Callable[[float], None] = time.sleep,
) -> Downloaded:
    """Makes `root` hold the files, whole, with a marker. Blocks; a second call finds the marker, and asks nobody.

    A folder belongs to one repository. What an earlier run left is kept where its hash is right, and replaced where
    not; a branch that has moved is followed only once the marker is gone, so name a commit to move to. Each of asking
    the hub and fetching a file is tried 3 times, with 30 s and 60 s in between; what time cannot heal, once.

    Args:
        repo_id: the repository, such as `owner/name`.
        files: what to bring; sizes and hashes that they name must be the repository's.
        revision: a branch, a tag or a commit.
        root: the folder; made if it is missing.
        token: for the hub; never printed.
        on_commit: called once all is written, where the file system must be told (a volume's commit).
        sleep: waits between attempts, seconds.

    Raises:
        ProfileError: the token cannot be sent.
        DownloadError: no attempt can succeed: not in the repository, disk full, damaged at its source, busy.
        ArtifactError: what came is not what the hub promised, 3 times in a row.
        Exception: huggingface-hub's, of the last attempt.
    """
    if token and not re.fullmatch(r"[!-~]+", token.reveal().strip()):
        raise ProfileError(field="token", value=token, allowed="visible ASCII without spaces (it is a header)")
    root.mkdir(parents=True, exist_ok=True)
    with _alone(root, repo_id):
        report = take_inventory(root, files, hashes=False, repo=repo_id, revision=revision)
        if report.marker and not report.problems:
            log.info("download.nothing_to_do", repo=repo_id, commit=report.marker.commit, root=str(root))
            return Downloaded(marker=report.marker, fetched=(), kept=tuple(item.path for item in files))
        hub = Hub(repo_id, revision, token, log.info)
        paths = [item.path for item in files]
        commit, remotes = _attempts("the list of files", lambda: hub.listing(paths), sleep)
        for item in files:
            _check_promise(repo_id, item, remotes[item.path])
        kept = {path: digest for path in paths if (digest := _whole(root, remotes[path]))}
        _make_room(repo_id, root, [remotes[path] for path in paths if path not in kept])
        hashes = dict(kept)
        for item in files:
            if item.path in kept:
                log.info("download.kept", file=item.path, bytes=remotes[item.path].size_bytes)
                continue
            hashes[item.path] = _fetch(hub, commit, root, item, remotes[item.path], sleep)
        marker = Marker.of(
            root, tuple(paths), repo=repo_id, revision=revision, commit=commit, sha256s={p: hashes[p] for p in paths}
        )
        marker.save(root)
        on_commit()
    log.info("download.done", repo=repo_id, commit=commit, root=str(root), files=len(paths), kept=len(kept))
    return Downloaded(marker=marker, fetched=tuple(p for p in paths if p not in kept), kept=tuple(kept))


@contextlib.contextmanager
def _alone(root: Path, repo: str) -> Iterator[None]:
    """Two runs in one folder would take each other's unfinished files for leftovers."""
    try:
        with host_lock(root, "download", timeout_s=0):
            yield
    except Timeout as error:
        raise DownloadError(repo=repo, problem="busy", detail=f"another run is filling {root}") from error


def _attempts(what: str, work: Callable[[], T], sleep: Callable[[float], None]) -> T:
    def before_sleep(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        log.warning(
            "download.attempt_failed",
            what=what,
            attempt=state.attempt_number,
            of=ATTEMPTS,
            error=_one_line(error),
            retry_in_s=state.upcoming_sleep,
        )

    retrying = Retrying(
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_chain(*map(wait_fixed, WAITS_S)),
        retry=retry_if_exception(worth_retrying),
        before_sleep=before_sleep,
        sleep=sleep,
        reraise=True,
    )
    try:
        return retrying(work)
    except Exception as error:
        attempt = retrying.statistics.get("attempt_number")
        log.error("download.gave_up", what=what, attempt=attempt, of=ATTEMPTS, error=_one_line(error))  # noqa: TRY400
        raise


def _fetch(hub: Hub, commit: str, root: Path, item: Artifact, remote: Remote, sleep: Callable[[float], None]) -> str:
    """Brings one file and verifies it; its hash."""

    def once() -> str:
        began = time.monotonic()
        log.info("download.started", file=item.path, bytes=remote.size_bytes)
        hub.fetch(item.path, commit, root)
        promised = Artifact(
            path=item.path, kind=item.kind, size_bytes=remote.size_bytes or None, sha256=remote.sha256 or item.sha256
        )
        (row,) = take_inventory(root, [promised], hashes=True).files
        if row.problems:
            (root / item.path).unlink(missing_ok=True)  # or the client would take it for done the next time
            problems = tuple(f"{item.path}: {problem}" for problem in row.problems)
            if remote.sha256 and row.sha256 == remote.sha256:
                detail = f"{'; '.join(problems)}. The hash is the one that the hub gives: choose another revision"
                raise DownloadError(repo=hub.repo, problem="damaged at its source", detail=detail)
            raise ArtifactError(root, problems, "run download_model again")
        took_s = round(time.monotonic() - began, 1)
        log.info("download.verified", file=item.path, sha256=row.sha256, took_s=took_s)
        return row.sha256 or sha256_of(root / item.path)

    return _attempts(item.path, once, sleep)


def _check_promise(repo: str, item: Artifact, remote: Remote) -> None:
    """The repository's file must be the one that the profile describes, before a byte of it is fetched."""
    says: Mapping[str, tuple[object, object]] = {
        "size": (item.size_bytes, remote.size_bytes),
        "sha256": (item.sha256 if remote.sha256 else None, remote.sha256),
    }
    for what, (wanted, offered) in says.items():
        if wanted is not None and wanted != offered:
            detail = f"{item.path} has {what} {offered} there, the profile says {wanted}"
            raise DownloadError(repo=repo, problem="not as expected", detail=detail)
    if not (item.min_bytes or 0) <= remote.size_bytes <= (item.max_bytes or remote.size_bytes):
        detail = (
            f"{item.path} has {remote.size_bytes} bytes there, the profile says {item.min_bytes} to {item.max_bytes}"
        )
        raise DownloadError(repo=repo, problem="not as expected", detail=detail)


def _whole(root: Path, remote: Remote) -> str | None:
    """The hash of a file that an earlier run finished; None when it must be fetched."""
    path = root / remote.path
    if remote.sha256 and path.is_file() and path.stat().st_size == remote.size_bytes:
        return remote.sha256 if sha256_of(path) == remote.sha256 else None
    return None


def _make_room(repo: str, root: Path, missing: Sequence[Remote]) -> None:
    """Checks the space, then removes what is to be replaced: the marker first, then dead files and half ones."""
    # The client gives each attempt a file of its own and takes up none again: those of a killed run are dead weight.
    dead = [path for path in (root / ".cache/huggingface/download").rglob("*.incomplete") if path.is_file()]
    dead += [root / remote.path for remote in missing if (root / remote.path).is_file()]
    needed = sum(remote.size_bytes for remote in missing)
    reclaimed = sum(path.stat().st_size for path in dead)
    space = shutil.disk_usage(root)
    if space.total and needed > space.free + reclaimed:
        detail = f"{needed} bytes are needed in {root}, {space.free + reclaimed} are free. Use a larger volume"
        raise DownloadError(repo=repo, problem="disk full", detail=detail)
    (root / MARKER).unlink(missing_ok=True)
    for path in dead:
        log.info("download.replaced", file=str(path.relative_to(root)), bytes=path.stat().st_size)
        path.unlink()


def _one_line(error: BaseException | None) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
