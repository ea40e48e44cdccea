"""What is read from a daemon and its server: health, memory, open files, golden answers."""

from __future__ import annotations

import os
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio

from hooks.contract.requests import read_load
from hooks.contract.tree import read_tree
from hooks.golden.generation import Generation
from hooks.golden.step import Golden
from hooks.http.chat import chat
from hooks.warmup import Text
from modal_entry.gemma import SHEET
from supervisor import Daemon
from supervisor.child import Child

ASKED = 30  # times that a golden question is asked, per situation


def talk(daemon: Daemon) -> None:
    """One answer that holds."""
    anyio.run(Text().__call__, daemon.supervised.child)


def health(daemon: Daemon) -> str:
    """What the server says of itself."""

    async def look(child: Child) -> str:
        try:
            async with child.client(timeout_s=2) as client:
                answer = await client.get("/health")
                return f"{answer.status_code} {answer.text[:60]}"
        except Exception as error:  # noqa: BLE001  told
            return type(error).__name__

    return anyio.run(look, daemon.supervised.child)


def rss_mib(daemon: Daemon) -> int:
    """Memory of the child."""
    status = Path(f"/proc/{daemon.supervised.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) // 1024


def holdings(child: Child) -> dict[str, Any]:
    """What the child holds that a snapshot contract may stumble over."""
    (process,) = read_tree(child).processes
    unix = {line.split()[6]: line.split()[7:] for line in Path("/proc/net/unix").read_text().splitlines()[1:]}
    kinds: Counter[str] = Counter()
    for held in process.descriptors:
        target = held.target
        if target.startswith("socket:["):
            target = f"socket, {'unix ' + ' '.join(unix[target[8:-1]]) if target[8:-1] in unix else 'not unix'}"
        kinds[re.sub(r"\[\d+\]|/proc/\d+", "[N]", target) + (" regular" if held.regular else "")] += 1
    mapped: Counter[str] = Counter()
    for line in process.mappings:
        library = re.fullmatch(r"/.*\.so[.\d]*", line.path)
        if line.path and not line.path.startswith("["):
            mapped["libraries" if library and "cuda" not in line.path and "nv" not in line.path else line.path] += 1
    lines = {line.path: line.text for line in process.mappings if line.path.startswith("/dev/")}
    fds = {held.target: [str(held.file), held.regular] for held in process.descriptors if "nvidia" in held.target}
    threads = len(os.listdir(f"/proc/{child.pid}/task"))
    return {"descriptors": dict(kinds), "mappings": dict(mapped), "threads": threads, "lines": lines, "fds": fds}


async def settle(child: Child) -> None:
    """Waits until the server works on nothing: it goes on for a moment when a client has left."""
    with anyio.fail_after(60):
        while (load := await read_load(child)) and load.requests:
            await anyio.sleep(0.1)


async def distances(child: Child, golden: Golden) -> dict[str, Any]:
    """The golden question in three situations: how many of the answers differ, and how far log-probabilities move."""
    await settle(child)
    first: Generation = await golden._ask(child, True)
    found: dict[str, Any] = {"text": first.text, "logprobs": [round(token.logprob, 4) for token in first.tokens]}

    async def other(tokens: int) -> None:
        words = "Tell me a long story about rivers, ships and the people on them."
        await chat(child, words, tokens, None, ignore_eos=True, cache_prompt=False)

    async def situation(name: str, before: Callable[[], Any] | None = None) -> None:
        if "busy" not in name:
            await settle(child)
        apart, differ, took_s = [], 0, []
        for _ in range(ASKED):
            if before:
                await before()
            began = time.monotonic()
            again = await golden._ask(child, True)
            took_s.append(time.monotonic() - began)
            same = len(again.tokens) == len(first.tokens) and all(
                map(lambda a, b: a.same(b), again.tokens, first.tokens)
            )
            differ += not same
            pairs = zip(again.tokens, first.tokens, strict=False)
            apart += [max(abs(a.logprob - b.logprob) for a, b in pairs if a.same(b))] if same else []
        found[name] = {
            "other_tokens": f"{differ} of {ASKED}",
            "apart_max": max(apart, default=None),
            "apart_median": statistics.median(apart) if apart else None,
            "answer_s": round(statistics.median(took_s), 4),
        }

    await situation("idle")
    await situation("after others", lambda: other(16))
    for slots in (1, SHEET.slots - 1):
        async with anyio.create_task_group() as tasks:

            async def busy() -> None:
                while True:
                    await other(256)

            for _ in range(slots):
                tasks.start_soon(busy)
            await situation(f"{slots} slots busy")
            tasks.cancel_scope.cancel()
    await settle(child)
    return found
