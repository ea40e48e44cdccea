"""The library of `hooks/sleep/offload` in a process, asked directly, as its own client would ask: no package is needed.

The measurements ask for what the Steps never do (other chunks, zeros looked for by the host), and read what is kept.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
NAME: Final = "libwarmboot_gpu.so"
FOLDER: Final = "WARMBOOT_GPU_MEMORY"
_FLAGS: Final = ("-std=c11", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread")
_ANSWER_S: Final = 180.0


def compiled(folder: Path, *, cc: str = "cc") -> Path:
    """Compile the packaged sources into the folder."""
    out = folder / NAME
    sources = sorted((ROOT / "hooks" / "sleep" / "offload").rglob("*.c"))
    subprocess.run([cc, *_FLAGS, "-o", out, *sources, "-ldl"], check=True)
    return out


def sockets(pid: int) -> list[Path]:
    """The sockets of the tree that the process belongs to, by the variable of its environment."""
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    folder = next(entry.split(b"=", 1)[1] for entry in entries if entry.startswith(FOLDER.encode() + b"="))
    return sorted(path for path in Path(folder.decode()).glob("*.sock") if Path(f"/proc/{path.stem}").exists())


def ask(path: Path, **request: Any) -> dict[str, Any]:
    """One request and its answer."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(_ANSWER_S)
        line.connect(str(path))
        line.sendall(json.dumps(request).encode() + b"\n")
        with line.makefile() as answers:
            found: dict[str, Any] = json.loads(answers.readline())
    return found


def kept(pid: int) -> dict[str, Any]:
    """What the tree's libraries say that they caught, and keep in host memory."""
    answers = [ask(path, op="status") for path in sockets(pid)]
    sums = {name: sum(answer[name] for answer in answers) for name in ("bytes", "stored_bytes", "zero_bytes")}
    return sums | {"processes": len(answers), "states": sorted({answer["state"] for answer in answers})}


def _stored(pid: int) -> tuple[int, int, int]:
    """Start, end and resident kB of what the library keeps: the largest anonymous memory that asked for huge pages."""
    smaps = Path(f"/proc/{pid}/smaps").read_text()
    rows = re.findall(
        r"^(\w+)-(\w+) rw-p \w+ 00:00 0 *(?:\[anon:.*\])?\n(?:\w+:.*\n)*?Rss: +(\d+) kB\n(?:\w+:.*\n)*?VmFlags:.* hg\b",
        smaps,
        re.MULTILINE,
    )
    return max(((int(start, 16), int(end, 16), int(rss_kb)) for start, end, rss_kb in rows), key=lambda row: row[2])


def flip(pid: int) -> dict[str, Any]:
    """Change one byte in the middle of what an asleep process keeps: of its largest such memory."""
    start, end, rss_kb = _stored(pid)
    page = os.sysconf("SC_PAGE_SIZE")
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        # From the middle on, the first byte that is not zero: pieces of zeros are not kept, and leave holes.
        for place in range(start + (end - start) // 2 // page * page, end, page):
            memory.seek(place)
            index = next((n for n, value in enumerate(memory.read(page)) if value), None)
            if index is None:
                continue
            memory.seek(place + index)
            (before,) = memory.read(1)
            memory.seek(place + index)
            memory.write(bytes([before ^ 0x10]))
            return {"mapping": f"{start:#x}-{end:#x}", "rss_mib": rss_kb >> 10, "host_address": f"{place + index:#x}"}
    raise LookupError(f"process {pid} keeps nothing in {start:#x}-{end:#x}")
