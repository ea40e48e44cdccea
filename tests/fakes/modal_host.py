"""What lies on the volumes of the test's entry, and the environment of a container that sees them."""

from __future__ import annotations

import json
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import httpx

from fakes.gguf_files import write_gguf
from hooks.artifacts.marker import Marker, sha256_of
from modal_entry.pipeline.manifest import Manifest
from modal_entry.pipeline.releases import promote
from modal_entry.rehearsal.container import Container
from modal_entry.rehearsal.control_plane import ControlPlane
from support import DATA, FAKE, free_port

APP = DATA / "entry_app.py"
KEY = "sk-made-up-for-tests"


def write_build(builds: Path, tag: str, command: str) -> None:
    """A whole build whose llama-server is a script."""
    folder = builds / tag
    folder.mkdir(parents=True)
    binary = folder / "llama-server"
    binary.write_text(command)
    binary.chmod(0o755)
    Manifest(
        tag=tag,
        commit=None,
        patches=(),
        compiler="none",
        cuda=None,
        architecture=None,
        ran="not",
        files={"llama-server": sha256_of(binary)},
        built_at=datetime.now(UTC).isoformat(),
    ).write(folder)


class Host:
    """What lies on the volumes, and the environment of a container that sees them."""

    def __init__(self, home: Path, command: list[str], *faults: str, model: Path | None = None) -> None:
        self.home = home
        self.port = free_port()
        folder = home / "models" / "gemma-3-270m"
        folder.mkdir(parents=True)
        if model is None:
            write_gguf(folder / "model.gguf")
        else:
            (folder / "model.gguf").symlink_to(model)
        Marker.of(folder, ("model.gguf",), repo="local/model", revision="main").save(folder)
        self.command = f'#!/bin/sh\nexec {shlex.join(command)} "$@" {shlex.join(faults)}\n'
        self.build("b1")
        promote(home / "builds", "b1")
        self.env = {
            "ENTRY_PORT": str(self.port),
            "ENTRY_MODELS": str(home / "models"),
            "ENTRY_BUILDS": str(home / "builds"),
            "API_KEY": KEY,
        }

    @classmethod
    def of_fake(cls, home: Path, *faults: str) -> Self:
        """A host whose binary is the fake server with faults."""
        return cls(home, [sys.executable, "-I", "-S", str(FAKE)], *faults)

    def build(self, tag: str) -> None:
        """Puts a whole build on the volume."""
        write_build(self.home / "builds", tag, self.command)

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
