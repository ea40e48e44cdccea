"""llama-server from a tag of llama.cpp: clone, patch, compile, install, in that order and on disk last.

Beside it lies our library that offloads GPU memory, compiled from the packaged source. A server runs without it too, so
a library that does not compile costs no build: BUILD.json and the log say why it is not there.

A build is one folder for each tag and architecture, immutable. It is compiled on the builder's own disk, gathered in a
staging folder on the volume, described by BUILD.json as the last file, and only then renamed to its own name. So a
folder with BUILD.json is whole however its builder died, and one without is replaced by the next build.

Builds of one tag on one host wait for each other; the second finds the work done. Across containers no lock holds: give
the function `max_containers=1`. Without that the last rename wins, and should a volume ever merge two builds of a tag
file by file, the hashes tell.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from hooks.artifacts.files import sha256_of
from hooks.sleep.offload import GpuMemoryError
from hooks.sleep.offload import build as offload
from hooks.sleep.offload.build import LIBRARY
from modal_entry.pipeline.cmake import compiler, configuration
from modal_entry.pipeline.commands import CommandFailed, Run, emit, host_lock, run_command
from modal_entry.pipeline.manifest import BINARY, Manifest, check_build, folder_name
from modal_entry.pipeline.patches import GEMMA4_THINKING_TAGS, Patch
from supervisor.errors import ProfileError, SupervisorError

__all__ = ["BuildConflict", "Built", "build"]

REPOSITORY: Final = "https://github.com/ggml-org/llama.cpp"
STALE_S: Final = 3600.0  # gathering takes seconds; an older staging folder has no owner any more


@dataclass(eq=False, repr=False, kw_only=True)
class BuildConflict(SupervisorError):
    """The tag is built already, whole, but with other patches than asked for. Nothing was changed."""

    cli_status = 2
    folder: str
    built: str
    wanted: str

    @property
    def summary(self) -> str:
        return (
            f"{self.folder} is a whole build with the patches [{self.built}], not [{self.wanted}]. A build that may be "
            "in use is never replaced: build into another root, or remove that folder first."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A whole build: its folder, its manifest, and whether this call made it (`fresh`) or found it."""

    folder: Path
    manifest: Manifest
    fresh: bool

    def __str__(self) -> str:
        lacks = self.manifest.architecture and LIBRARY not in self.manifest.files
        without = f" (without {LIBRARY}: {self.manifest.gpu_memory})" if lacks else ""
        return f"{'built' if self.fresh else 'already built'}: {self.folder}{without}"


def build(
    tag: str,
    *,
    root: Path,
    cuda_arch: str | None,
    on_commit: Callable[[], object],
    source: str | Path = REPOSITORY,
    jobs: int | None = None,
    patches: Iterable[Patch] = (GEMMA4_THINKING_TAGS,),
    run: Run = run_command,
) -> Built:
    """Have a whole build of `tag` in its folder below `root`: find it, or make it. Blocks, for minutes.

    Args:
        tag: of llama.cpp, "b9940".
        root: the volume of builds.
        cuda_arch: see `architecture`; None builds for CPUs. Tag and architecture name the folder: `folder_name`.
        on_commit: called once the build is there, also when it was found: an earlier run may have died before this.
        source: a str is a git repository, cloned at the tag; a Path is a source tree, copied.
        jobs: compilers side by side; None: as many as the build tool thinks fit.
        patches: applied in this order. One that does not apply fails the build.
        run: runs the commands.

    Raises:
        ProfileError: `tag` cannot be a tag and a folder.
        PatchDoesNotApply: see there.
        CommandFailed: git, cmake, the compiler or the new binary failed; its last lines are in the error.
        BuildConflict: a whole build is there, with other patches.
        OSError: the disk or the volume failed.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", tag, re.ASCII):
        raise ProfileError(field="tag", value=tag, allowed="a tag like b9940: letters, digits, and . _ + - inside")
    patches = tuple(patches)
    name = folder_name(tag, cuda_arch)
    folder = root / name
    root.mkdir(parents=True, exist_ok=True)
    with host_lock(root, f"build {name}"):
        _sweep(root, name)
        faults = check_build(folder)
        if faults:
            if folder.exists():
                emit("build.replacing", folder=str(folder), because=[str(fault) for fault in faults[:5]])
            with tempfile.TemporaryDirectory(prefix=f"warmboot-{tag}-") as work:
                manifest = _make(tag, root, Path(work), source, cuda_arch, jobs, patches, run)
            done = Built(folder=folder, manifest=manifest, fresh=True)
        else:
            done = Built(folder=folder, manifest=Manifest.read(folder), fresh=False)
            _same(done, patches)
        on_commit()
    emit("build.done", folder=str(folder), fresh=done.fresh, ran=done.manifest.ran)
    return done


def _make(
    tag: str,
    root: Path,
    work: Path,
    source: str | Path,
    cuda_arch: str | None,
    jobs: int | None,
    patches: tuple[Patch, ...],
    run: Run,
) -> Manifest:
    tree, out, name = work / "source", work / "out", folder_name(tag, cuda_arch)
    commit = _fetch(tag, source, tree, run)
    outcomes = []
    for patch in patches:
        outcomes.append((patch.name, patch.apply(tree)))
        emit("build.patch", name=patch.name, outcome=outcomes[-1][1])
    run(configuration(tag, tree, out, cuda_arch, commit), cwd=work)
    many = ["--parallel", *([str(jobs)] if jobs else [])]
    run(["cmake", "--build", str(out), "--config", "Release", "--target", BINARY, *many], cwd=work)

    staging = Path(tempfile.mkdtemp(dir=root, prefix=f".staging-{name}-"))
    try:
        staging.chmod(0o755)  # mkdtemp's 0700 would shut out a server under another user
        _gather(tree, out / "bin", staging)
        gpu_memory = _add_library(staging) if cuda_arch else "none: for CPUs"
        manifest = Manifest(
            tag=tag,
            commit=commit,
            patches=tuple(outcomes),
            compiler=compiler(out, ("CXX", "C"), run) or "unknown",
            cuda=compiler(out, ("CUDA",), run),
            architecture=cuda_arch,
            ran=_ran(staging, run),
            files={p.relative_to(staging).as_posix(): sha256_of(p) for p in sorted(staging.rglob("*")) if p.is_file()},
            built_at=datetime.now(UTC).isoformat(timespec="seconds"),
            gpu_memory=gpu_memory,
        )
        manifest.write(staging)
        _rename(staging, root / name)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return manifest


def _fetch(tag: str, source: str | Path, tree: Path, run: Run) -> str | None:
    if isinstance(source, str):
        quiet = ["-c", "advice.detachedHead=false"]
        run(["git", *quiet, "clone", "--depth", "1", "--branch", tag, "--", source, str(tree)], cwd=tree.parent)
        return _head(tree, run)
    shutil.copytree(source, tree, symlinks=True, ignore=shutil.ignore_patterns(".git"))
    try:
        return _head(source, run) if (source / ".git").exists() else None
    except CommandFailed as failed:  # packages made from a submodule carry a .git that leads nowhere
        emit("build.commit_unknown", source=str(source), because=failed.tail[-1:])
        return None


def _head(checkout: Path, run: Run) -> str:
    return run(["git", "rev-parse", "--verify", "HEAD"], cwd=checkout).splitlines()[-1]


def _gather(tree: Path, bin_folder: Path, staging: Path) -> None:
    """Copies only, no links: what a link on a volume points to is not part of its hash."""
    shutil.copy2(bin_folder / BINARY, staging / BINARY)
    for library in bin_folder.glob("*.so*"):
        shutil.copy2(library, staging / library.name)
    for template in sorted((tree / "models" / "templates").glob("google-gemma-4*.jinja")):
        (staging / "templates").mkdir(exist_ok=True)
        shutil.copy2(template, staging / "templates" / template.name)


def _add_library(staging: Path) -> str:
    """Compiles the library that offloads GPU memory; returns "built", or why there is none."""
    try:
        offload.build(staging)
    except GpuMemoryError as failed:
        (staging / LIBRARY).unlink(missing_ok=True)
        emit("build.gpu_memory", outcome="not built", because=str(failed))
        return f"not built: {failed.summary}"
    emit("build.gpu_memory", outcome="built")
    return "built"


def _ran(staging: Path, run: Run) -> str:
    try:
        lines = run([str(staging / BINARY), "--version"], cwd=staging).splitlines()
    except CommandFailed as failed:
        for line in failed.tail:
            if "libcuda.so" in line:
                return f"not run here: {line.strip()}"
        raise
    return next((line for line in lines if line.startswith("version")), lines[0] if lines else "it printed nothing")


def _same(done: Built, patches: tuple[Patch, ...]) -> None:
    built = sorted(name for name, _ in done.manifest.patches)
    wanted = sorted(patch.name for patch in patches)
    if built != wanted:
        raise BuildConflict(folder=str(done.folder), built=", ".join(built), wanted=", ".join(wanted))


def _rename(staging: Path, folder: Path) -> None:
    if folder.exists():
        doubtful = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".staging-{folder.name}-old-"))
        folder.rename(doubtful / folder.name)
        staging.rename(folder)
        shutil.rmtree(doubtful, ignore_errors=True)
    else:
        staging.rename(folder)


def _sweep(root: Path, name: str) -> None:
    """Remove what killed builds left; a young folder may belong to another container."""
    for path in root.glob(f".staging-{name}-*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > STALE_S:
                emit("build.sweep", folder=str(path))
                shutil.rmtree(path, ignore_errors=True)
