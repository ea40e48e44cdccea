"""BUILD.json: what a build folder holds and how it came about. Written last, so a folder that has it is whole."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from hooks.artifacts.files import sha256_of, write_atomically

__all__ = ["BUILD_JSON", "BuildFault", "BuildId", "Manifest", "check_build", "folder_name"]

BUILD_JSON: Final = "BUILD.json"
BINARY: Final = "llama-server"
OLDER: Final = "none: built before there was a library"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildFault:
    """A reason to doubt a build: `path` is relative to its folder."""

    path: str
    problem: str

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildId:
    """One build, exactly: the name of its folder, and the hash of its BUILD.json, which states those of all files."""

    folder: str
    sha256: str

    @classmethod
    def of(cls, folder: Path) -> BuildId:
        """The identity of a build that is there.

        Raises:
            OSError: it cannot be read; FileNotFoundError: there is no such build, or it was never finished.
        """
        return cls(folder=folder.name, sha256=sha256_of(folder / BUILD_JSON))


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The content of BUILD.json.

    Attributes:
        tag: of llama.cpp.
        commit: full hash of the source; None for a source tree that was not a checkout.
        patches: name and outcome of each.
        compiler: its own version line.
        cuda: the version line of nvcc; None for a build for CPUs.
        architecture: of the GPU, as CMake numbers it ("89"); None for a build for CPUs.
        ran: the binary's own version line, or why it could not be run where it was built.
        files: sha256 in hex of every file, by path relative to the folder.
        built_at: UTC, ISO 8601.
        gpu_memory: "built" where the library that offloads GPU memory lies beside the binary, else why it does not.
    """

    tag: str
    commit: str | None
    patches: tuple[tuple[str, str], ...]
    compiler: str
    cuda: str | None
    architecture: str | None
    ran: str
    files: dict[str, str]
    built_at: str
    gpu_memory: str = OLDER

    @property
    def folder(self) -> str:
        """The name of the build's folder."""
        return folder_name(self.tag, self.architecture)

    def write(self, folder: Path) -> None:
        """Write BUILD.json into the folder, in one step."""
        value = asdict(self) | {"patches": [{"name": name, "outcome": outcome} for name, outcome in self.patches]}
        write_atomically(folder / BUILD_JSON, json.dumps(value, indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a build folder.

        Raises:
            OSError: it cannot be read; FileNotFoundError: the build was never finished.
            ValueError: it is not a manifest; the message says in which respect.
        """
        try:
            value = json.loads((folder / BUILD_JSON).read_text(encoding="utf-8"))
            files = dict(_text(value["files"]))
            if BINARY not in files:
                raise ValueError(f"it lists no {BINARY}")
            if any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in files):
                raise ValueError("it lists a file outside its folder")
            return cls(
                tag=str(value["tag"]),
                commit=value["commit"],
                patches=tuple((str(patch["name"]), str(patch["outcome"])) for patch in value["patches"]),
                compiler=str(value["compiler"]),
                cuda=value["cuda"],
                architecture=value["architecture"],
                ran=str(value["ran"]),
                files=files,
                built_at=str(value["built_at"]),
                gpu_memory=str(value.get("gpu_memory", OLDER)),
            )
        except KeyError as error:
            raise ValueError(f"it has no field {error}") from error
        except (TypeError, AttributeError) as error:
            raise ValueError(f"a field has the wrong type ({error})") from error


def folder_name(tag: str, architecture: str | None) -> str:
    """The name of a build's folder: "b9940-sm89" for a GPU's architecture, "b9940-cpu" without one."""
    return f"{tag}-sm{architecture}" if architecture else f"{tag}-cpu"


def check_build(folder: Path) -> list[BuildFault]:
    """Every reason to doubt a build: hashes all its files, some seconds a GB; an empty list means that it is whole.

    Args:
        folder: of one tag and architecture; its name must be `folder_name` of what BUILD.json states.

    Raises:
        OSError: a file is there but cannot be read.
    """
    try:
        manifest = Manifest.read(folder)
    except FileNotFoundError:
        what = "missing: the build was never finished" if folder.is_dir() else "missing: there is no such build"
        return [BuildFault(path=BUILD_JSON, problem=what)]
    except ValueError as error:
        return [BuildFault(path=BUILD_JSON, problem=f"not a manifest: {error}")]
    faults = []
    if (name := manifest.folder) != folder.name:
        faults.append(BuildFault(path=BUILD_JSON, problem=f"is of {name}, in the folder of {folder.name}"))
    for name, wanted in sorted(manifest.files.items()):
        path = folder / name
        if not path.is_file():
            faults.append(BuildFault(path=name, problem="missing"))
        elif (seen := sha256_of(path)) != wanted:
            faults.append(BuildFault(path=name, problem=f"sha256 is {seen[:12]}..., BUILD.json says {wanted[:12]}..."))
        elif name == BINARY and not os.access(path, os.X_OK):
            faults.append(BuildFault(path=name, problem="not executable"))
    # A library more than was built may be loaded in place of the system's.
    here = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    extra = here - manifest.files.keys() - {BUILD_JSON}
    return faults + [BuildFault(path=name, problem="not in BUILD.json") for name in sorted(extra)]


def _text(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for pair in value.items() for item in pair):
        raise ValueError("`files` does not map paths to hashes")
    return value
