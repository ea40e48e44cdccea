"""The checksum of stored chunks is CRC32C, with the processor's instruction and without."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from fakes.cuda.build import SOURCES


@pytest.mark.compiler
def test_checksums_are_those_of_the_definition(tmp_path: Path) -> None:
    """Known values, all kinds of lengths and places, in one go and continued; without undefined behaviour."""
    program = tmp_path / "check"
    source = Path(__file__).with_name("crc32c_check.c")
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined", "-fno-sanitize-recover=all"]
    subprocess.run(["cc", *flags, "-pthread", "-I", SOURCES, "-o", program, source], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
