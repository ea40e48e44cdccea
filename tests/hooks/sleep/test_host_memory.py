"""How much ordinary memory is left, by what Linux says of the host and of our container."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from fakes.cuda.build import SOURCES

MIB = 1 << 20
UNKNOWN = 2**64 - 1
HOST = {"proc/meminfo": f"MemTotal: 9 kB\nMemAvailable:    {900 << 10} kB\nSwapTotal: 7 kB\nSwapFree: {100 << 10} kB\n"}
STAT = f"anon {5 * MIB}\ninactive_file {20 * MIB}\nactive_file {10 * MIB}\n"
TWO = "sys/fs/cgroup"
ONE = "sys/fs/cgroup/memory"
MACHINES: dict[str, tuple[int, dict[str, str]]] = {
    "nothing is told": (UNKNOWN, {}),
    "a host": (1000 * MIB, HOST),
    "a host whose groups have no limit": (
        1000 * MIB,
        {**HOST, "proc/self/cgroup": "0::/a\n", f"{TWO}/a/memory.max": "max\n", f"{TWO}/a/memory.current": "1\n"},
    ),
    "a container": (
        230 * MIB,
        {
            **HOST,
            "proc/self/cgroup": "0::/\n",
            f"{TWO}/memory.max": f"{300 * MIB}\n",
            f"{TWO}/memory.current": f"{100 * MIB}\n",
            f"{TWO}/memory.stat": STAT,
        },
    ),
    "a group in one with less room": (
        100 * MIB,
        {
            **HOST,
            "proc/self/cgroup": "1:name=systemd:/x\n0::/a/b\n",
            f"{TWO}/a/b/memory.max": f"{800 * MIB}\n",
            f"{TWO}/a/b/memory.current": f"{MIB}\n",
            f"{TWO}/a/memory.max": f"{300 * MIB}\n",
            f"{TWO}/a/memory.current": f"{200 * MIB}\n",
        },
    ),
    "a container of version 1, by the host's name for it": (
        1 * MIB,
        {
            **HOST,
            "proc/self/cgroup": "5:cpu:/x\n4:memory:/docker/1234\n",
            f"{ONE}/memory.limit_in_bytes": f"{11 * MIB}\n",
            f"{ONE}/memory.usage_in_bytes": f"{40 * MIB}\n",
            f"{ONE}/memory.stat": "".join(f"total_{line}\n" for line in STAT.splitlines()),
        },
    ),
    "a group that is full": (
        0,
        {
            **HOST,
            "proc/self/cgroup": "0::/\n",
            f"{TWO}/memory.max": f"{MIB}\n",
            f"{TWO}/memory.current": f"{2 * MIB}\n",
        },
    ),
}


@pytest.mark.compiler
def test_the_room_is_the_least_of_the_hosts_and_the_containers(tmp_path: Path) -> None:
    """Pages of files can be had back, groups are within groups, and what cannot be told limits nothing."""
    program = tmp_path / "check"
    source = Path(__file__).with_name("host_memory_check.c")
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined", "-fno-sanitize-recover=all"]
    subprocess.run(["cc", *flags, "-I", SOURCES, "-o", program, source], check=True)
    for name, (_, files) in MACHINES.items():
        for path, text in files.items():
            file = tmp_path / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
    roots = [tmp_path / name for name in MACHINES]
    said = subprocess.run([program, *roots], capture_output=True, text=True, check=True).stdout.split()
    assert dict(zip(MACHINES, map(int, said), strict=True)) == {name: room for name, (room, _) in MACHINES.items()}
