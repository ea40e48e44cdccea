"""What lies on the volumes of the test's entry, and the environment of a container that sees them."""

from __future__ import annotations

import copy
import hashlib
import json
import shlex
import shutil
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Self

import httpx

from fakes.cuda.build import Built
from fakes.gguf_files import write_gguf
from hooks.artifacts.files import sha256_of
from hooks.artifacts.marker import Marker
from hooks.sleep.offload.build import LIBRARY
from modal_entry.pipeline.manifest import BuildId, Manifest
from modal_entry.pipeline.releases import Releases
from modal_entry.rehearsal.container import Container
from modal_entry.rehearsal.control_plane import ControlPlane
from modal_entry.serving.deployment import Deployment
from modal_entry.serving.pinned import Pinned
from support import DATA, FAKE, free_port

SECRETS = {
    "gemma4-api-key": {"API_KEY"},
    "qwen3-api-key": {"API_KEY"},
    "huggingface-secret": {"HF_TOKEN"},
    "entry-key": {"API_KEY"},
}
APP = DATA / "entry_app.py"
KEY = "sk-made-up-for-tests"


def write_build(builds: Path, tag: str, command: str, library: bytes | None = None) -> Path:
    """A whole build, for the architecture of an L4 or L40S, whose llama-server is a script; its folder.

    Args:
        builds: where.
        tag: of llama.cpp.
        command: the script.
        library: the content of the library that puts GPU memory aside; None: the build has none.
    """
    script = builds / "llama-server.draft"
    builds.mkdir(parents=True, exist_ok=True)
    script.write_text(command)
    script.chmod(0o755)
    files = {"llama-server": sha256_of(script)}
    if library is not None:
        files[LIBRARY] = hashlib.sha256(library).hexdigest()
    manifest = Manifest(
        tag=tag,
        commit=None,
        patches=(),
        compiler="none",
        cuda=None,
        architecture="89",
        ran="not",
        files=files,
        built_at=datetime.now(UTC).isoformat(),
    )
    folder = builds / manifest.folder
    folder.mkdir()
    script.rename(folder / "llama-server")
    if library is not None:
        (folder / LIBRARY).write_bytes(library)
    manifest.write(folder)
    return folder


def filled(home: Path, sheet: Deployment) -> dict[str, Path]:
    """Volumes on which a deploy finds what it looks for: a promoted build, and the marker of the weights."""
    build = write_build(home / "builds", sheet.llama_cpp_tag, "#!/bin/sh\n")
    Releases(root=home / "builds", environment="main", app=sheet.app).promote(build.name)
    folder = home / "models" / sheet.name / sheet.revision
    folder.mkdir(parents=True)
    Marker.of(folder, (), repo=sheet.repo, revision=sheet.revision, commit="c0ffee").save(folder)
    return {"llama-models": home / "models", "llama-cpp-builds": home / "builds"}


class Host:
    """What lies on the volumes, and the environment of a container that sees them."""

    def __init__(
        self,
        home: Path,
        command: list[str],
        *faults: str,
        model: Path | None = None,
        library: bytes | None = None,
    ) -> None:
        self.home = home
        self.library = library
        self.port = free_port()
        folder = self.weights = home / "models" / "gemma-3-270m" / "main"
        folder.mkdir(parents=True)
        if model is None:
            write_gguf(folder / "model.gguf")
        else:
            (folder / "model.gguf").symlink_to(model)
        marker = Marker.of(folder, ("model.gguf",), repo="local/model", revision="main")
        marker.save(folder)
        self.command = f'#!/bin/sh\nexec {shlex.join(command)} "$@" {shlex.join(faults)}\n'
        self.folders = {"llama-models": home / "models", "llama-cpp-builds": home / "builds"}
        self.releases = self.releases_of(home, "main")
        build = self.build("b1")
        self.releases.promote(build.name)
        pinned = Pinned(build=BuildId.of(build), commit="main", weights_sha256=marker.content_sha256)
        self.env = {
            "ENTRY_PORT": str(self.port),
            "WARMBOOT_MODELS_PATH": str(home / "models"),
            "WARMBOOT_BUILDS_PATH": str(home / "builds"),
            "API_KEY": KEY,
            **pinned.variables(),  # as if this host had been deployed
        }

    @classmethod
    def of_fake(cls, home: Path, *faults: str) -> Self:
        """A host whose binary is the fake server with faults."""
        return cls(home, [sys.executable, "-I", "-S", str(FAKE)], *faults)

    @classmethod
    def with_gpu(
        cls,
        home: Path,
        cuda: Built,
        *flags: str,
        library: bytes | None = None,
        faults: Mapping[str, str] = MappingProxyType({}),
    ) -> Self:
        """A host whose binary is the fake server with weights in the GPU memory of a driver without a GPU.

        Args:
            home: of the volumes.
            cuda: that driver.
            flags: of the fake server, in front of those of the profile.
            library: in the build, beside the server; None: the one that is tested.
            faults: of the driver, by their names in `fakes/cuda/stub.h`.
        """
        given = [f"FAKE_CUDA_{name}={value}" for name, value in faults.items()]
        env = ["env", f"LD_LIBRARY_PATH={cuda.folder}", *given]
        engine = ["--gpu-engine", str(cuda.engine), *flags]
        command = [*env, sys.executable, "-I", "-S", str(FAKE), *engine]
        return cls(home, command, library=cuda.library.read_bytes() if library is None else library)

    def copied(self, home: Path) -> Self:
        """Another host with a copy of these volumes: what was deployed from these runs on the copy too."""
        shutil.copytree(self.home, home)
        other = copy.copy(self)
        other.home, other.port = home, free_port()
        other.weights = home / self.weights.relative_to(self.home)
        other.folders = {name: home / folder.relative_to(self.home) for name, folder in self.folders.items()}
        other.releases = self.releases_of(home, "main")
        paths = {"WARMBOOT_MODELS_PATH": str(home / "models"), "WARMBOOT_BUILDS_PATH": str(home / "builds")}
        other.env = {**self.env, **paths, "ENTRY_PORT": str(other.port)}
        return other

    def build(self, tag: str) -> Path:
        """Puts a whole build on the volume."""
        return write_build(self.home / "builds", tag, self.command, self.library)

    @staticmethod
    def releases_of(home: Path, environment: str) -> Releases:
        """The pointer of the entry in a Modal environment."""
        return Releases(root=home / "builds", environment=environment, app="entry")

    def served(self) -> str:
        """The folder of the promoted build."""
        release = self.releases.current()
        assert release
        return release.current.folder

    def container(self, plane: ControlPlane, **env: str) -> Container:
        return Container(plane, "Entry", self.home, env={**self.env, **env})

    def busy(self) -> bool:
        """Whether the server works on a request."""
        try:
            slots = httpx.get(
                f"http://127.0.0.1:{self.port}/slots", headers={"Authorization": f"Bearer {KEY}"}, trust_env=False
            ).json()
        except httpx.TransportError:
            return False
        return any(slot["is_processing"] for slot in slots)

    def chat(self, key: str = KEY) -> httpx.Response:
        question = {"messages": [{"role": "user", "content": "Say OK."}], "max_tokens": 4}
        url = f"http://127.0.0.1:{self.port}/v1/chat/completions"
        return httpx.post(url, json=question, headers={"Authorization": f"Bearer {key}"}, trust_env=False, timeout=30)


def server_pid(log: list[str]) -> int:
    """The pid of the last server that a container spawned, from its log: for people, or JSON."""
    lines = [line for line in log if "child.spawned" in line]
    if lines[-1].startswith("{"):
        return int(json.loads(lines[-1])["pid"])
    return int(lines[-1].partition("pid=")[2].split()[0])
