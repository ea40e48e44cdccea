"""Everything that a deployment is made of, in one table, with a verdict: model files, server build, flags, template."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hooks.artifacts.inventory import Artifact, FoundFile, Inventory, take_inventory
from modal_entry.pipeline.manifest import BINARY, Manifest, check_build
from supervisor.engines.llama_cpp import capabilities
from supervisor.errors import SupervisorError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from rich.console import Console

__all__ = ["BuildSeen", "inspect_build", "inspect_volumes"]

NEEDED: Final = ("--model", "--host", "--port", "--alias", "--ctx-size", "--parallel", "--jinja", "--metrics")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSeen:
    """A folder with a built server, as it was found.

    Attributes:
        folder: where.
        facts: tag, commit, patches, compiler, flags and the like, fit for a table.
        files: those that BUILD.json lists, and their sizes; None: not there.
        doubts: everything that is wrong, each with its file.
    """

    folder: Path
    facts: Mapping[str, str]
    files: Mapping[str, int | None]
    doubts: tuple[str, ...]


def inspect_volumes(
    root: Path,
    artifacts: Sequence[Artifact],
    *,
    build: Path | None = None,
    architecture: str | None = None,
    repo: str | None = None,
    revision: str | None = None,
    hashes: bool = True,
    mend: str = "run download_model",
    mend_build: str = "run build_llama_server",
    console: Console | None = None,
) -> int:
    """Prints a table of every artifact and of the build, and a verdict. Blocks; hashing takes about 1 s a GB.

    Args:
        root: the folder of the artifacts.
        artifacts: what must be in it.
        build: a folder that holds BUILD.json; None: no build is looked at.
        architecture: of the GPU that the build must be for, as CMake numbers it; None: any.
        repo, revision: what the marker must name; None: any.
        hashes: compare hashes as well; without, the verdict says that they were not.
        mend, mend_build: the commands that the verdict recommends.
        console: where to print; default: standard output.

    Returns:
        The exit status: 0 when there is no doubt, else 1.
    """
    from rich.console import Console
    from rich.text import Text

    # A log has no width; the 80 columns that are assumed otherwise would break every cell.
    console = console or Console(width=None if sys.stdout.isatty() else 160)
    report = take_inventory(root, artifacts, hashes=hashes, repo=repo, revision=revision)
    found = inspect_build(build, architecture) if build is not None else None
    _print_model(console, report, hashes)
    if found is not None:
        _print_build(console, found)
    advice = [(report.problems, mend), (found.doubts if found else (), mend_build)]
    for doubts, command in advice:
        for doubt in doubts:
            console.print(Text(f"  {doubt}", "red"))
        if doubts:
            console.print(Text(f"  To mend it: {command}"))
    doubtful = any(doubts for doubts, _ in advice)
    good = "everything is as it should be" if hashes else "sizes and headers are as they should be; nothing was hashed"
    console.print(
        Text(f"Verdict: {'not fit to serve' if doubtful else good}.", "bold red" if doubtful else "bold green")
    )
    return int(doubtful)


def inspect_build(folder: Path, architecture: str | None = None) -> BuildSeen:
    """Compares a build with its BUILD.json, and asks its binary for its flags; raises nothing about the build.

    Args:
        folder: of one tag and architecture, or a link to it.
        architecture: see `inspect_volumes`.
    """
    folder = folder.resolve()
    doubts: list[str] = []
    try:
        doubts += map(str, check_build(folder))
        manifest = Manifest.read(folder)
    except (OSError, ValueError) as error:
        return BuildSeen(folder=folder, facts={}, files={}, doubts=tuple(doubts) or (f"unreadable: {error}",))
    if architecture is not None and manifest.architecture != architecture:
        doubts.append(f"{BINARY}: built for architecture {manifest.architecture}, the GPU has {architecture}")
    sizes = {name: _size(folder / name) for name in sorted(manifest.files)}
    doubts += [f"{name}: empty" for name, size in sizes.items() if size == 0]
    flags, wrong = _ask(folder)
    facts = {
        "tag": manifest.tag,
        "commit": str(manifest.commit),
        "patches": ", ".join(f"{name}: {outcome}" for name, outcome in manifest.patches) or "none",
        "compiler": manifest.compiler,
        "CUDA": f"{manifest.cuda}, architecture {manifest.architecture}" if manifest.cuda else "none: for CPUs",
        "version": manifest.ran,
        "flags": flags,
        "GPU memory": manifest.gpu_memory,
        "templates": ", ".join(name for name in sizes if name.endswith(".jinja")) or "none: the model's own is used",
    }
    return BuildSeen(folder=folder, facts=facts, files=sizes, doubts=(*doubts, *wrong))


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _ask(folder: Path) -> tuple[str, list[str]]:
    """What the binary says of its flags, and what is wrong with them."""
    # The environment's secrets are none of its business.
    library_path = ":".join(filter(None, (str(folder), os.environ.get("LD_LIBRARY_PATH"))))
    env = {"PATH": os.environ.get("PATH", os.defpath), "LD_LIBRARY_PATH": library_path}
    try:
        flags = capabilities(folder / BINARY, env)
    except SupervisorError as error:
        if "libcuda.so" in error.summary:  # the driver's library, which only a machine with a GPU has
            return "not asked: this machine has no GPU driver", []
        return "unknown", [f"{BINARY}: {error.summary}"]
    unmapped = [flag for flag in ("--load-mode", "--no-mmap") if flag in flags]
    problems = [f"{BINARY}: its --help lists no {flag}" for flag in NEEDED if flag not in flags]
    if not unmapped:
        problems.append(
            f"{BINARY}: its --help lists neither --load-mode nor --no-mmap; a snapshot would lack the weights"
        )
    return f"{len(flags)}; {' or '.join(unmapped) or 'nothing'} keeps the weights in memory", problems


def _print_model(console: Console, report: Inventory, hashes: bool) -> None:
    from rich.table import Table
    from rich.text import Text

    marker = report.marker
    origin = (
        f"{marker.repo} @ {marker.revision}, commit {marker.commit}, {marker.written_at}" if marker else "no marker"
    )
    table = Table(title=Text(f"{report.root}: {origin}"), title_justify="left")
    for column in ("file", "bytes", "sha256", "architecture", "quantisation", "context", "template", "verdict"):
        table.add_column(column, overflow="fold", justify="right" if column in ("bytes", "context") else "left")
    for row in report.files:
        table.add_row(*map(Text, _cells(row, hashes)))
    console.print(table)


def _cells(row: FoundFile, hashes: bool) -> list[str]:
    size = "" if row.size_bytes is None else f"{row.size_bytes:,}"
    digest = (row.sha256 or "")[:12] or ("" if hashes else "not hashed")
    verdict = "; ".join(problem.partition(":")[0] for problem in row.problems) or "ok"
    if row.gguf is None:
        return [row.path, size, digest, "", "", "", "", verdict]
    gguf = row.gguf
    shard = f" ({gguf.split_no + 1} of {gguf.split_count})" if gguf.split_count > 1 else ""
    context = f"{gguf.context_length:,}" if gguf.context_length else ""
    template = "its own" if gguf.has_chat_template else "none"
    kind = f"{gguf.architecture or 'not said'}{shard}"
    return [row.path, size, digest, kind, gguf.quantisation, context, template, verdict]


def _print_build(console: Console, build: BuildSeen) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(f"{build.folder}"), title_justify="left")
    for column in ("build", "bytes", "verdict"):
        table.add_column(column, overflow="fold", justify="right" if column == "bytes" else "left")
    for name, size in build.files.items():
        verdict = "; ".join(doubt.removeprefix(f"{name}: ") for doubt in build.doubts if doubt.startswith(f"{name}: "))
        table.add_row(*map(Text, (name, "" if size is None else f"{size:,}", verdict or "ok")))
    for name, value in build.facts.items():
        table.add_row(Text(name, "bold"), "", Text(value))
    console.print(table)
