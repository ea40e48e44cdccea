"""Issue 10's measurements on a GPU: GPU memory put aside by our library, beside the driver's way and an engine's own.

    PYTHONPATH=.:tests:tests/gpu python tests/gpu/gpu_memory.py [--only SECTION ...] [--json FILE] ...

| section | measures | needs |
|---|---|---|
| bare | the library under a program that only holds GPU memory; a GPU too full, a damaged byte | torch |
| llama | llama-server in the Gemma shapes: the driver alone, and ours; cost while awake | --server, gguf |
| turns | two llama-servers that take turns on one GPU | --server, gguf |
| full | a llama-server's GPU got too full meanwhile | --server, gguf, torch |
| damage | one byte of what a llama-server keeps changes: found, and healed by a cold start | --server, gguf |
| vllm, sglang | 8B: the engine's own sleep, the driver alone, and ours; cost while awake | --python |
| two | one program on two GPUs; vLLM with tensor parallelism 2 | --python, two GPUs |

All but `bare` run under the supervisor and need its packages. Models of random weights are written below --root. FILE
is written after every step; a section that fails leaves its error there, and the others run.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import driver
from prints import say

SECTIONS: Final = ("bare", "llama", "turns", "full", "damage", "vllm", "sglang", "two")
GIB: Final = 1 << 30


class Report:
    """Results by section, in a file after every step."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._began = time.monotonic()
        self.results: dict[str, Any] = {"gpu": driver.describe()}

    def put(self, section: str, name: str, value: Any) -> None:
        """Store a result, and what was printed of it."""
        self.results.setdefault(section, {})[name] = value
        if self._path:
            new = self._path.with_suffix(".new")
            new.write_text(json.dumps(self.results, indent=1, default=str))
            new.replace(self._path)

    def section(self, name: str, run: Callable[[Callable[[str, Any], None]], None]) -> bool:
        """Run one; its failure is told, and stays its own."""
        began = time.monotonic()
        say(f"== {name}, at {began - self._began:.0f} s")
        try:
            run(lambda key, value: self.put(name, key, value))
        except Exception as error:  # noqa: BLE001  told
            say(traceback.format_exc())
            self.put(name, "error", f"{type(error).__name__}: {error}")
            return False
        finally:
            self.put(name, "took_s", round(time.monotonic() - began, 1))
        return True


def bare_section(args: argparse.Namespace) -> Callable[[Callable[[str, Any], None]], None]:
    """Needs torch in `--torch`, `cc`, and no package of ours."""
    import bare
    import library

    def run(put: Callable[[str, Any], None]) -> None:
        with tempfile.TemporaryDirectory(prefix="wb-gpu-") as folder:
            built = args.library or library.compiled(Path(folder))
            bare.measure(
                put,
                python=args.torch,
                built=built,
                unit_mib=args.unit_mib,
                budget_s=args.budget_s,
                plain=args.ctypes,
            )

    return run


def chosen(args: argparse.Namespace) -> Iterable[tuple[str, Callable[[Callable[[str, Any], None]], None]]]:
    """The sections asked for, in order; what a section imports is only needed by it."""
    for name in args.only or SECTIONS:
        if name == "bare":
            yield name, bare_section(args)
            continue
        import servers

        yield name, servers.section(name, args)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=SECTIONS, help="repeatable, in this order; default: all")
    parser.add_argument("--json", type=Path, help="where the numbers go")
    parser.add_argument("--root", type=Path, default=Path(tempfile.gettempdir()), help="models go there")
    parser.add_argument("--library", type=Path, help="a built library; default: built from the sources")
    parser.add_argument("--torch", default=sys.executable, help="a Python with torch; default: this one")
    parser.add_argument("--python", default=sys.executable, help="of the engine's environment")
    parser.add_argument("--server", type=Path, help="llama-server; its libraries are found beside it")
    parser.add_argument("--shapes", choices=("tiny", "real"), default="real", help="of the Gemma dummy")
    parser.add_argument("--cycles", type=int, default=5)
    parser.add_argument("--driver-cycles", type=int, help="of the driver alone, the slowest; default: --cycles")
    parser.add_argument("--way", action="append", help="repeatable; of an engine's ways only these")
    parser.add_argument("--speeds", type=int, default=5, help="requests of 256 tokens after each cold start")
    parser.add_argument("--pairs", type=int, default=2, help="starts with and without the library, in turns")
    parser.add_argument("--no-mmproj", action="store_true", help="llama-server without the projector of pictures")
    parser.add_argument("--eager", action="store_true", help="two: vLLM without CUDA graphs, which starts sooner")
    parser.add_argument("--prepare", action="store_true", help="write the Gemma dummy, and nothing else")
    parser.add_argument("--touch-gb", type=int, default=0, help="write to so much host memory first")
    parser.add_argument("--unit-mib", type=int, default=1024, help="bare: size of each of 16 tensors")
    parser.add_argument("--budget-s", type=float, default=90.0, help="bare: no more of the sweep after so long")
    parser.add_argument("--ctypes", action="store_true", help="bare: without torch")
    return parser.parse_args()


def main() -> int:
    """Runs the sections."""
    args = parse()
    if args.prepare:
        import servers

        servers.write_gemma(args)
        return 0
    report = Report(args.json)
    if args.touch_gb:
        import bare

        report.put("host", "touched_s", bare.touch(args.touch_gb * GIB))
        say(f"host memory: {report.results['host']}")
    passed = [report.section(name, run) for name, run in chosen(args)]
    say(json.dumps(report.results, default=str))
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
