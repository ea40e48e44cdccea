"""The Python program: loads its engine, and so the CUDA runtime, with RTLD_LOCAL, as `import torch` does.

python engine.py LIBRARY: commands on stdin, an answer a line on stdout, as the C program has them.
"""

from __future__ import annotations

import ctypes
import sys


def main() -> None:
    """Obey line by line until stdin ends."""
    library = ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_LOCAL)
    answer = ctypes.create_string_buffer(512)
    for line in sys.stdin:
        library.run_command(line.encode(), answer, len(answer))
        sys.stdout.write(answer.value.decode() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
