"""The command: `python -m system.soak SECONDS [--seed N]`, with `tests` on the path."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence

from system.soak.run import Soak


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 when nothing was wrong."""
    parser = argparse.ArgumentParser(description="Random faults on a loop.")
    parser.add_argument("seconds", type=float, nargs="?", default=600.0)
    parser.add_argument("--seed", type=int, default=None, help="repeats a run")
    given = parser.parse_args(argv)
    seed = random.SystemRandom().randrange(1_000_000) if given.seed is None else given.seed
    print(f"soak: seed {seed}, {given.seconds:g} s", flush=True)  # noqa: T201
    soak = Soak(given.seconds, seed)
    wrong = soak.run()
    print("\n".join(soak.report()))  # noqa: T201
    if wrong:
        print("\n".join([f"soak: WRONG, repeat with --seed {seed}", *wrong]))  # noqa: T201
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
