"""Volumes for a rehearsal of the Gemma entry on a laptop: the dummy Gemma 4, and a build that is the local engine.

python tests/fakes/gemma_volumes.py DIR
supervise rehearse modal_entry/gemma.py --mount DIR/models:/models --mount DIR/builds:/llama-build --env API_KEY=...
"""

from __future__ import annotations

import sys
from pathlib import Path

from fakes import tiny_gemma4
from fakes.modal_host import write_build
from hooks.artifacts.marker import Marker
from modal_entry.gemma import SHEET
from modal_entry.pipeline.releases import Releases


def make(home: Path) -> None:
    """Writes `models` and `builds` below `home`; the engine is this interpreter's."""
    folder = home / "models" / SHEET.name / SHEET.revision
    folder.mkdir(parents=True)
    assert SHEET.mmproj
    tiny_gemma4.build(folder / SHEET.weights)
    tiny_gemma4.build_mmproj(folder / SHEET.mmproj)
    Marker.of(folder, (SHEET.weights, SHEET.mmproj), repo=SHEET.repo, revision=SHEET.revision).save(folder)
    # One thread: in gVisor, threads that wait for each other take most of the time.
    command = f'#!/bin/sh\nexec {sys.executable} -m supervisor.engines.embedded "$@" --threads 1\n'
    build = write_build(home / "builds", SHEET.llama_cpp_tag, command)
    Releases(root=home / "builds", environment="main", app=SHEET.app).promote(build.name)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
