"""The tables of GPU memory put aside are those of the committed results, and leave out what failed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tools.gpu_memory_table import PAGE, SECTIONS, read, rendered
from tools.sections import section


def cycle(leave_s: float, **more: Any) -> dict[str, Any]:
    """One cycle of a server with 1 GiB of GPU memory."""
    row = {
        "gpu_mib_before": 1024,
        "gpu_mib_sealed": 512,
        "rss_mib_before": 100,
        "rss_mib_between": 612,
        "steps": {"gpu memory offload": leave_s, "golden text record": 9.0},
        "lock_s": 0.1,
        "checkpoint_s": 0.2,
        "restore_s": 0.3,
        "unlock_s": 0.0,
        "resume_s": 0.4,
        "to_the_last_bit": True,
        "same_child": True,
    }
    return row | more


def test_the_page_shows_the_committed_results() -> None:
    """`PYTHONPATH=tests python -m tools.gpu_memory_table` brings it in line; without results there is no table."""
    if found := read():
        page = PAGE.read_text(encoding="utf-8")
        assert {name: section(page, name).strip() for name in SECTIONS} == rendered(found)


def test_medians_of_each_way_stand_side_by_side(tmp_path: Path) -> None:
    """Leave is the sleep and the driver's part, without golden answers; kept is what the library says, else by RSS."""
    kept = {"kept": {"bytes": 1000, "stored_bytes": 450}}
    llama = {
        "our offload": {"cycles": [cycle(0.1, **kept), cycle(0.5, **kept, same_child=False), cycle(0.2, **kept)]},
        "the driver alone": {"cycles": [cycle(0.0, checkpoint_s=8.0)]},
        "cost": {
            "without": [{"start_s": 4.0, "tokens_per_s": [100.0, 102.0]}, {"start_s": 4.2, "tokens_per_s": [101.0]}],
            "with": [{"start_s": 4.3, "tokens_per_s": [100.0]}, {"error": "died"}],
        },
    }
    (tmp_path / "one.json").write_text(json.dumps({"gpu": "H200", "llama": llama}))
    measured = rendered(read(tmp_path))["measured"].splitlines()
    assert measured[2:] == [
        "| llama.cpp, Gemma shapes, 1.0 GiB: leave | 8.10 s | - | 0.50 s |",
        "| its return to the first answer of 24 tokens | 0.70 s | - | 0.70 s |",
        "| GPU memory left while it sleeps | 0.50 GiB | - | 0.50 GiB |",
        "| kept in host memory, of what it had | 50.00 % | - | 45.00 % |",
        "| came back to the last bit | 1 of 1 | - | 2 of 3 |",
        "| its cold start | 4.10 s | - | 4.30 s (+0.20 s) |",
        "| its tokens a second | 101.0 | - | 100.0 (-1.0 %) |",
    ]


def test_what_failed_is_left_out_and_files_add_up(tmp_path: Path) -> None:
    """Sections of several files stand in one table; a way that died, or a wrong answer, gives no number."""
    moved = {"seconds": {"total": 0.5}, "stored_bytes": 10**10}
    sweep = [
        {"threads": 8, "chunk_bytes": 2 << 20, "zeros": "gpu", "verify": True, "same": same, "offload": moved}
        | {"reload": moved | {"seconds": {"total": 0.2 if same else 9.0}}}
        for same in (True, False)
    ]
    turns = [{"switch_s": 1.1, "same": True}, {"switch_s": 1.3, "same": "other"}, {"switch_s": 1.2, "same": True}]
    two = {"cycles": [cycle(0.7, steps={"gpu memory offload": 0.7, "gpu memory reload": 0.3})]}
    (tmp_path / "a.json").write_text(json.dumps({"vllm": {"our offload": {"error": "died"}}, "bare": {"sweep": sweep}}))
    (tmp_path / "b.json").write_text(json.dumps({"turns": {"turns": turns}, "two": {"vLLM on two GPUs": two}}))
    tables = rendered(read(tmp_path))
    assert tables["measured"].splitlines()[2:] == [
        "| two llama.cpp on one GPU take turns: to the first token | a reload | - | 1.20 s (2 of 3 to the last bit) |",
        "| vLLM on two GPUs, 1.0 GiB: out / back, on its host | fails | - | 0.70 / 0.30 s, 1 of 1 to the last bit |",
    ]
    assert tables["threads"].splitlines()[2:] == ["| 8 | 0.50 s (20 GB/s) | - | 0.20 s (50 GB/s) | - |"]
